"""DSpark folders as DeepSpec, SpecForge and speculators write them: proposals equal the definition; temperatures; refusals."""

import json

import pytest
import torch

from tests.unit.importers.foreign import DFLASH_SHAPES, IDS, ZLAB, H, double, paired, proposed, pruned, tensors, write
from tests.unit.importers.test_speculators_folders import DFLASH as BY_SPECULATORS
from tests.unit.methods import dspark_reference
from tests.unit.tiny import MASK, VOCABULARY, B
from torchspec.errors import UserError

R, ROWS = 6, B - 1
HEAD = {"markov_rank": R, "markov_head_type": "vanilla", "enable_confidence_head": True, "confidence_head_with_markov": True}
PLAIN = {key: value for key, value in ZLAB.items() if key not in ("dflash_config", "auto_map")}
DEEPSPEC = {**PLAIN, **HEAD, "architectures": ["Qwen3DSparkModel"], "block_size": ROWS, "mask_token_id": MASK, "target_layer_ids": [1, 3],
            "num_anchors": 512}  # fmt: skip
SPECFORGE = {**PLAIN, "architectures": ["DSparkDraftModel"], "block_size": ROWS, "dflash_config": {
    **HEAD, "projector_type": "dspark", "confidence_head_alpha": 1.0, "mask_token_id": MASK, "target_layer_ids": [1, 3]}}  # fmt: skip
OF_SPECULATORS = {**BY_SPECULATORS, **HEAD, "speculators_model_type": "dspark", "architectures": ["DSparkSpeculator"]}
SHAPES = {
    "vanilla": {}, "gated": {"markov_head.gate_proj.weight": (R, H + R), "markov_head.gate_proj.bias": (R,)},
    "rnn": {"markov_head.joint_proj.weight": (3 * R, 2 * R + H), "markov_head.joint_proj.bias": (3 * R,)},
}  # fmt: skip


def weights(kind: str = "vanilla", rows: int = VOCABULARY) -> dict[str, torch.Tensor]:
    head = {"markov_head.markov_w1.weight": (VOCABULARY, R), "markov_head.markov_w2.weight": (rows, R)}
    confidence = {"confidence_head.proj.weight": (1, H + R), "confidence_head.proj.bias": (1,)}
    return tensors({**DFLASH_SHAPES, **head, **SHAPES[kind], **confidence})


def by_hand(pair, kind: str, w: dict, target, text: tuple, ids: torch.Tensor, head: torch.Tensor) -> list[int]:
    token, anchor = text[0][9], 9
    hidden = dspark_reference.rows(
        double(w), pair.method.config, target.embedding.double(), text[1].double(), anchor, token, pair.method.rows == B
    )
    slots = dspark_reference.slots(double(w), kind, hidden, token, head.double(), lambda _, logits: int(ids[logits.argmax()]))
    return [int(ids[logits.argmax()]) for logits, _ in slots]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("values", [DEEPSPEC, SPECFORGE, {**OF_SPECULATORS, "sample_from_anchor": True, "block_size": ROWS}],
                         ids=["DeepSpec", "SpecForge", "speculators"])  # fmt: skip
def test_a_folder_proposes_what_the_definition_gives(tmp_path, tiny_folder, tiny_target, values, kind):
    values, w = json.loads(json.dumps(values).replace('"vanilla"', f'"{kind}"')), weights(kind)
    own = {"embed_tokens.weight": tiny_target.embedding.clone(), "lm_head.weight": tiny_target.head.clone()} if values is DEEPSPEC else {}
    pair = paired(write(tmp_path, values, w | own), tiny_folder)
    assert (pair.method.layer_ids, pair.method.block_size, pair.method.confident) == ((1, 3), B, True)
    served, document, text = proposed(pair, 9)
    assert served == document == by_hand(pair, kind, w, tiny_target, text, torch.arange(VOCABULARY), tiny_target.head)


@pytest.mark.parametrize("reduced", [False, True])
def test_speculators_without_the_key_leaves_the_anchors_row_out(tmp_path, tiny_folder, tiny_target, reduced):
    """In that format a missing sample_from_anchor is false, in all others true. Its readout has a row for each of its own tokens."""
    values = {key: value for key, value in OF_SPECULATORS.items() if key != "sample_from_anchor"}
    ids, own = (IDS, pruned()) if reduced else (torch.arange(VOCABULARY), {})
    w = weights(rows=len(ids))
    pair = paired(write(tmp_path, {**values, "draft_vocab_size": len(ids)}, w | own), tiny_folder)
    assert pair.method.block_size == B == pair.method.rows
    served, document, text = proposed(pair, 9)
    assert served == document == by_hand(pair, "vanilla", w, tiny_target, text, ids, own.get("lm_head.weight", tiny_target.head))


def test_temperatures_beside_the_weights_are_the_drafts(tmp_path, tiny_folder):
    pair = paired(write(tmp_path, DEEPSPEC, weights()), tiny_folder)
    assert pair.method.temperatures == [1.0] * 3
    (tmp_path / "sts.json").write_text(json.dumps({"temperatures": [0.5, 2.0, 1.5], "dataset": "gsm8k"}))
    assert paired(tmp_path, tiny_folder).method.temperatures == [0.5, 2.0, 1.5]
    shorter = paired(tmp_path, tiny_folder, draft_tokens=2)
    assert shorter.method.block_size == 3 and shorter.method.temperatures == [0.5, 2.0]
    (tmp_path / "sts.json").write_text(json.dumps({"temperatures": [0.5, 0.0, 1.0]}))
    with pytest.raises(UserError, match=r"temperatures=\[0.5, 0.0, 1.0\]; fit them again"):
        paired(tmp_path, tiny_folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**DEEPSPEC, "markov_rank": 0}, "a Markov head of rank 0"),
        ({**DEEPSPEC, "markov_head_type": "lstm"}, "the Markov head 'lstm'"),
        ({**DEEPSPEC, "dspark_draft_topk": 64}, "dspark_draft_topk"),
        ({**SPECFORGE, "markov_rank": 8}, "markov_rank=8 at the top and 6 in dflash_config"),
        ({**OF_SPECULATORS, "markov_head_type": "rnn"}, "trained to remember the anchor's row"),
        ({**DEEPSPEC, "enable_confidence_head": False}, "unexpected confidence_head.proj"),
    ],
)
def test_what_is_not_computed_here_is_refused_in_one_sentence(tmp_path, tiny_folder, values, words):
    with pytest.raises(UserError, match=words):
        paired(write(tmp_path, values, weights()), tiny_folder)
