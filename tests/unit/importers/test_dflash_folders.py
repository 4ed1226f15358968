"""z-lab folders of DFlash as they are found: both places of a key, files of every kind, own tables; proposals equal the definition."""

import json

import pytest
import torch

from tests.unit.importers.foreign import DFLASH_SHAPES, IDS, ZLAB, H, dflash_by_hand, paired, proposed, pruned, tensors, write
from tests.unit.tiny import MASK, NEVER, VOCABULARY, B, random_prompt
from torchspec.acceptance.sampling import GREEDY, Sampler
from torchspec.decode.offline import accepted_per_step
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.errors import ContractError, UserError
from torchspec.files.contents import folder_key
from torchspec.nn.attention import WHOLE, Sight
from torchspec.records import Prompt

ANCHORS = [9, 17]


def config(**changes) -> dict:
    """The z-lab config.json with some keys another, or absent where None."""
    return {key: value for key, value in {**ZLAB, **changes}.items() if value is not None}


def nested(**changes) -> dict:
    return config(block_size=None, dflash_config={**ZLAB["dflash_config"], "block_size": B, **changes})


@pytest.fixture
def weights():
    return tensors(DFLASH_SHAPES)


@pytest.mark.parametrize(
    "values",
    [
        config(),
        nested(),
        config(rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": ZLAB["rope_theta"]}),
        config(rope_scaling={"type": "default", "mrope_section": [1, 1, 2]}),
        config(num_target_layers=None),
        config(num_target_layers=2),  # some trainers count the captured layers
        config(layer_types=None, sliding_window=4096, dtype="bfloat16"),
        config(draft_vocab_size=VOCABULARY),
    ],
    ids=["z-lab", "nested", "rope_parameters", "mrope", "no target layers", "captured layers", "unused window", "draft_vocab_size"],
)
def test_a_folder_proposes_what_the_definition_gives(tmp_path, tiny_folder, tiny_target, weights, values):
    pair = paired(write(tmp_path, values, weights), tiny_folder)
    for anchor in ANCHORS:
        served, document, text = proposed(pair, anchor)
        assert served == document == dflash_by_hand(weights, tiny_target.embedding, tiny_target.head, text, anchor, B)
    assert pair.method.layer_ids == (1, 3)


@pytest.mark.parametrize("files", ["sharded", "pickle"])
def test_files_of_every_kind_hold_the_same_draft(tmp_path, tiny_folder, weights, files):
    named = {f"model.{name}": value for name, value in weights.items()} | {"model.rotary_emb.inv_freq": torch.ones(4)}
    plain, other = write(tmp_path / "plain", config(), weights), write(tmp_path / "other", config(), named, files)
    expected, found = (paired(folder, tiny_folder).model.state_dict() for folder in (plain, other))
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    before = folder_key(other)
    write(other, config(), named | {"model.norm.weight": torch.ones(H)}, files)
    assert folder_key(other) != before


def test_layers_that_are_not_named_are_the_formulas(tmp_path, tiny_folder):
    """z-lab's own function, as its package computes it: two draft layers, six of the target."""
    changed = config(dflash_config={"mask_token_id": MASK})
    assert paired(write(tmp_path, changed, tensors(DFLASH_SHAPES)), tiny_folder).method.layer_ids == (1, 3)


@pytest.mark.parametrize("draft_tokens", [1, 2, B - 1])
def test_fewer_draft_tokens_are_a_shorter_block(tmp_path, tiny_folder, tiny_target, weights, draft_tokens):
    pair = paired(write(tmp_path, config(), weights), tiny_folder, draft_tokens)
    assert pair.method.block_size == draft_tokens + 1
    served, document, text = proposed(pair, 9)
    assert served == document == dflash_by_hand(weights, tiny_target.embedding, tiny_target.head, text, 9, draft_tokens + 1)


def test_more_draft_tokens_than_slots_are_refused(tmp_path, tiny_folder, weights):
    with pytest.raises(UserError, match="--draft-tokens 4: a block of 4 slots proposes at most 3"):
        paired(write(tmp_path, config(), weights), tiny_folder, B)


def test_copies_of_the_targets_tables_change_nothing(tmp_path, tiny_folder, tiny_target, weights, capsys):
    copies = {"model.embed_tokens.weight": tiny_target.embedding, "lm_head.weight": tiny_target.head}
    pair = paired(write(tmp_path, config(), weights | copies), tiny_folder)
    assert pair.model.state_dict().keys() == weights.keys() and torch.equal(pair.method.target.embedding, tiny_target.embedding)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("tables", ["embedding", "head", "pruned", "all", "unsorted"])
def test_own_tables_are_used_and_said(tmp_path, tiny_folder, tiny_target, weights, tables, capsys):
    own, ids = {}, None
    if tables in ("embedding", "all"):
        own["embed_tokens.weight"] = torch.randn(VOCABULARY, H, generator=torch.Generator().manual_seed(3))
    if tables == "head":
        own["lm_head.weight"] = tensors({"h": (VOCABULARY, H)}, seed=4)["h"]
    if tables in ("pruned", "all", "unsorted"):
        ids = IDS.flip(0) if tables == "unsorted" else IDS  # d2t of a shuffled vocabulary
        own |= pruned(ids=ids)
    size = None if ids is None else len(ids)
    pair = paired(write(tmp_path, config(draft_vocab_size=size), weights | own), tiny_folder)
    said = capsys.readouterr().out
    assert ("its own embedding" in said, "a head of its own" in said) == ("embed_tokens.weight" in own, "lm_head.weight" in own)
    served, document, text = proposed(pair, 9)
    embedding, head = own.get("embed_tokens.weight", tiny_target.embedding), own.get("lm_head.weight", tiny_target.head)
    assert served == document == dflash_by_hand(weights, embedding, head, text, 9, B, ids)
    assert torch.equal(pair.target.model.get_input_embeddings().weight, tiny_target.embedding)  # the target keeps its own


@pytest.mark.parametrize("bare", [False, True])
def test_a_mask_embedding_replaces_one_row_for_drafting(tmp_path, tiny_folder, tiny_target, weights, bare):
    row = torch.randn(H, generator=torch.Generator().manual_seed(5))
    write(tmp_path, config(), weights)
    before = folder_key(tmp_path)
    torch.save(row if bare else {"embedding": row, "mask_token_id": MASK}, tmp_path / "mask_embedding.pt")
    pair = paired(tmp_path, tiny_folder)
    embedding = tiny_target.embedding.clone()
    embedding[MASK] = row
    served, document, text = proposed(pair, 9)
    assert served == document == dflash_by_hand(weights, embedding, tiny_target.head, text, 9, B)
    assert served != dflash_by_hand(weights, tiny_target.embedding, tiny_target.head, text, 9, B)
    assert torch.equal(pair.target.model.get_input_embeddings().weight, tiny_target.embedding) and folder_key(tmp_path) != before


@pytest.mark.parametrize("saved", [{"embedding": torch.ones(H), "mask_token_id": 7}, {"mask_token_id": MASK}, torch.ones(H + 1)])
def test_a_mask_embedding_of_another_draft_is_refused(tmp_path, tiny_folder, weights, saved):
    write(tmp_path, config(), weights)
    torch.save(saved, tmp_path / "mask_embedding.pt")
    with pytest.raises(ContractError, match="mask_embedding.pt must hold an embedding of width 32 for the mask token 63"):
        paired(tmp_path, tiny_folder)


class Shell:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("name", ["mask_embedding.pt", "pytorch_model.bin"])
def test_nothing_in_a_pickle_is_executed(tmp_path, tiny_folder, weights, name):
    write(tmp_path, config(), weights, "pickle")
    torch.save({"embedding": Shell()}, tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is not a readable file of tensors"):
        paired(tmp_path, tiny_folder)


@torch.no_grad()
def test_a_drafter_makes_its_vocabulary_once(tmp_path, tiny_folder, weights, monkeypatch):
    """Its maps are checked and its head laid out when it is made; at every proposal that would cost more than the proposal."""
    pair = paired(write(tmp_path, config(draft_vocab_size=len(IDS)), weights | pruned()), tiny_folder)
    made, kept = [], type(pair.model).kept
    monkeypatch.setattr(type(pair.model), "kept", lambda model: made.append(model) or kept(model))
    drafter, context = pair.method.drafter(pair.model), pair.target.capture(Prompt(0, torch.arange(9), torch.arange(9) > 3)).context
    for end in (4, 5, 6):
        drafter.extend(torch.arange(end - 1, end), context[end - 1 : end])
        drafter.propose(end, GREEDY)
    assert len(made) == 1


def test_a_draft_with_its_own_vocabulary_decodes_without_loss_and_as_measured(tmp_path, tiny_folder, weights):
    """Decoded: the target's own tokens. Measured offline on them: the same accepted drafts at every step."""
    pair = paired(write(tmp_path, config(draft_vocab_size=len(IDS)), weights | pruned()), tiny_folder)
    prompt, drafter = random_prompt(1, 9), pair.method.drafter(pair.model)
    plain, fast = plain_decode(pair.target, prompt, 60, NEVER), speculative_decode(pair.target, drafter, prompt, 60, NEVER)
    assert plain.ids == fast.ids and sum(fast.accepted) > 0
    ids = torch.cat((prompt, torch.tensor(plain.ids)))
    features = pair.target.capture(Prompt(0, ids, torch.arange(len(ids)) >= len(prompt)))
    ((accepted, _),) = accepted_per_step(pair.method, pair.model, features)
    assert accepted[: len(fast.accepted) - 1] == fast.accepted[:-1]  # the last step may be cut at the last token
    drafter.reset()
    drafter.extend(ids[:12], features.context[:12])
    _, q = drafter.propose(int(ids[12]), Sampler(0.7, seed=0))
    log_q = pair.method.text_log_probabilities(pair.model, features, torch.tensor([12]), 0.7)[0]
    torch.testing.assert_close(q.sum(-1), torch.ones(B - 1))
    torch.testing.assert_close(log_q.exp(), q.gather(1, ids[13 : 12 + B, None])[:, 0])


SLIDES = ["sliding_attention", "full_attention"]
W = {"sliding_window": 5, "use_sliding_window": True}  # a window of less than a block and a text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (config(layer_types=SLIDES, **W), [Sight(5, causal=True), WHOLE]),
        (config(layer_types=SLIDES[:1] * 2, max_window_layers=2, **W), [Sight(5, causal=True)] * 2),
        (config(layer_types=None, max_window_layers=1, **W), [WHOLE, Sight(5, causal=True)]),
        (config(layer_types=SLIDES, is_causal=False, **W), [Sight(5), WHOLE]),
        (config(layer_types=SLIDES, is_causal=True, **W), [Sight(5, causal=True), Sight(causal=True)]),
        (nested(causal=True), [Sight(causal=True)] * 2),
        ({**nested(causal=True), "is_causal": False}, [WHOLE] * 2),  # is_causal goes first
        (nested(use_swa=True, swa_window_size=5), [Sight(5)] * 2),
        ({**nested(use_swa=True), **W}, [Sight(5)] * 2),
        ({**nested(swa_window_size=5), **W, "sliding_window": 9, "layer_types": SLIDES}, [Sight(5, causal=True), WHOLE]),
        ({**nested(use_swa=True, causal=True, swa_window_size=5)}, [Sight(5, causal=True)] * 2),
    ],
    ids=["one slides", "all slide", "by number", "not causal", "causal", "nested", "both", "use_swa", "swa on top", "swa size", "all"],
)  # fmt: skip
def test_windows_and_directions_are_read_as_vllm_does(tmp_path, tiny_folder, weights, values, expected):
    """Its table, in _resolve_layer_attention and _dflash_layer_causal of qwen3_dflash.py; drafter and document agree."""
    pair = paired(write(tmp_path, values, weights), tiny_folder)
    assert list(pair.method.sights) == expected
    served, document, _ = proposed(pair, 17)
    assert served == document


@pytest.mark.parametrize("layer_types", [SLIDES, SLIDES[:1] * 2])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_a_folder_with_windows_proposes_what_the_definition_gives(tmp_path, tiny_folder, tiny_target, weights, layer_types, anchor):
    pair = paired(write(tmp_path, config(layer_types=layer_types, **W), weights), tiny_folder)
    served, document, text = proposed(pair, anchor)
    windows = {"layer_types": layer_types, "sliding_window": 5}
    tables = (weights, tiny_target.embedding, tiny_target.head, text, anchor, B, None)
    assert served == document == dflash_by_hand(*tables, windows) != dflash_by_hand(*tables)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (config(layer_types=SLIDES), r"sliding_window=None, use_sliding_window=False; write"),
        (config(layer_types=SLIDES, sliding_window=5), "without which readers drop it"),  # as its readers do
        (config(layer_types=SLIDES, sliding_window=0, use_sliding_window=True), "sliding_window=0"),
        (config(layer_types=["chunked_attention", "full_attention"]), "write one of full_attention and sliding_attention for each layer"),
        (config(layer_types=["full_attention"]), r"cannot be read .*must be equal to the number of `layer_types` \(1\)"),
        (nested(use_swa=True), "sliding_window=None"),
        (nested(sample_from_anchor=True), "a proposal from the anchor's own slot"),
        (nested(projector_type="dspine"), "the projector 'dspine'"),
        (nested(projector_type="dspark"), "the projector 'dspark'"),
        (nested(attention_sink_bias=True), "attention biases"),
        (config(rope_is_neox_style=False), "interleaved rotation"),
        (config(rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5}), "partial"),
        (config(logit_scale=0.5), "scaled"),
        (config(quantization_config={"quant_method": "fp8"}), "quantised weights"),
        (config(block_size=8, dflash_config={**ZLAB["dflash_config"], "block_size": 4}), r"two block sizes, \[4, 8\]"),
        (config(block_size=None), "no block_size"),
        (config(dflash_config={"target_layer_ids": [1, 3]}), "mask_token_id=None"),
        (nested(mask_token_id=64), "mask_token_id=64, which is no token of the target's 64"),
        (nested(target_layer_ids=[3, 1]), "ascend strictly"),
        (config(vocab_size=65), "vocabulary 65, width 32 and 6 layers"),
        (config(num_target_layers=7), "and 7 layers"),
        (config(hidden_size="wide"), "config.json cannot be read"),
        (config(architectures=["DFlash3DraftModel"]), "is a DFlash3DraftModel; supported are"),
    ],
)
def test_what_is_not_computed_here_is_refused_in_one_sentence(tmp_path, tiny_folder, weights, values, words):
    with pytest.raises(UserError, match=words) as refusal:
        paired(write(tmp_path, values, weights), tiny_folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "values", "words"),
    [
        (lambda w: w.update({"lm_head.weight": torch.ones(9, H)}), {}, "9 rows, with no d2t"),
        (lambda w: w.update(pruned()), {"draft_vocab_size": 10}, "9 rows, with a d2t of 9 and draft_vocab_size=10"),
        (lambda w: w.update(pruned(ids=IDS[[0, 0, 1]])), {}, "two maps of its vocabulary disagree"),
        (lambda w: w.update(pruned() | {"d2t": IDS}), {}, "two maps of its vocabulary disagree"),
        (lambda w: w.update({"d2t": IDS}), {}, "holds no lm_head.weight"),
        (lambda w: None, {"draft_vocab_size": 9}, "holds no lm_head.weight"),
        (
            lambda w: w.update({"embed_tokens.weight": torch.ones(65, H)}),
            {},
            r"is \(65, 32\) but the target's \(64, 32\)",
        ),
        (lambda w: w.update({"markov_head.markov_w1.weight": torch.ones(64, 4)}), {}, "unexpected markov_head.markov_w1.weight"),
        (lambda w: w.pop("layers.1.self_attn.q_norm.weight"), {}, "missing layers.1.self_attn.q_norm.weight"),
    ],
)
def test_tensors_that_do_not_make_this_draft_are_refused(tmp_path, tiny_folder, weights, change, values, words):
    change(weights)
    with pytest.raises(UserError, match=words):
        paired(write(tmp_path, config(**values), weights), tiny_folder)


@pytest.mark.parametrize("index", ["{", json.dumps([1]), json.dumps({"weight_map": {"norm.weight": "gone.safetensors"}})])
def test_a_damaged_set_of_shards_is_refused(tmp_path, tiny_folder, weights, index):
    write(tmp_path, config(), weights, "sharded")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match="model.safetensors.index.json|gone.safetensors"):
        paired(tmp_path, tiny_folder)
