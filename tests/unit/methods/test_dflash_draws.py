"""Random choices of DFlash: anchors, and the mask token."""

import itertools

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.unit.tiny import B, make_method, random_features
from torchspec.errors import ContractError, UserError
from torchspec.methods.block.format import check_layer_ids, default_layer_ids
from torchspec.methods.blocks import padded, sample_anchors
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.dflash.method import DFlash
from torchspec.methods.mask_token import choose_mask_token
from torchspec.training.stream import pack

MASKS = ["0" * 5 + "1" * 20, "0011" + "0" * 3 + "1" * 9, "1" * 7 + "0", "0100"]
SAMPLES = {i: random_features(mask, i) for i, mask in enumerate(MASKS)}


def draws(indices, epoch=0, seed=0, num_anchors=4) -> dict[int, list[int]]:
    layout = sample_anchors(pack([SAMPLES[i] for i in indices], epoch), num_anchors, B, seed)
    return {i: layout.anchors[n][layout.valid[n]].tolist() for n, i in enumerate(indices)}


def test_a_samples_anchors_are_the_same_in_every_batch_that_holds_it():
    alone = {i: draws([i])[i] for i in SAMPLES}
    for size in range(1, 5):
        for indices in itertools.permutations(SAMPLES, size):
            assert draws(indices) == {i: alone[i] for i in indices}


def test_seed_epoch_and_sample_each_change_the_draw():
    assert len({tuple(draws([0], epoch=e)[0]) for e in range(10)}) > 5
    assert len({tuple(draws([0], seed=s)[0]) for s in range(10)}) > 5
    twins = [random_features("0" * 5 + "1" * 20, i) for i in range(10)]
    layout = sample_anchors(pack(twins, 0), 4, B, 0)
    assert len({tuple(row) for row in layout.anchors.tolist()}) > 5


def test_anchors_are_candidates_ascend_without_repetition_and_number_at_most_what_was_asked():
    for epoch, num_anchors in itertools.product(range(20), (1, 4, 1000)):
        for i, drawn in draws(list(SAMPLES), epoch, num_anchors=num_anchors).items():
            mask = SAMPLES[i].prompt.loss_mask.tolist()
            possible = [t for t in range(len(mask) - 1) if mask[t] and mask[t + 1]]
            assert set(drawn) <= set(possible) and drawn == sorted(set(drawn)) and len(drawn) == min(num_anchors, len(possible))


def test_every_candidate_is_drawn_equally_often():
    """4 of 19 candidates in 4000 epochs: each count is binomial, mean 842, standard deviation 26; 5 of them happen once in 10^5."""
    counts = torch.zeros(25)
    for epoch in range(4000):
        counts[draws([0], epoch)[0]] += 1
    assert counts[:5].sum() == counts[24] == 0 and counts.sum() == 16000
    assert (counts[5:24] - 16000 / 19).abs().max() < 5 * 26


def test_a_document_in_which_nothing_can_be_an_anchor_gets_invalid_blocks_at_zero():
    layout = sample_anchors(pack([SAMPLES[3]], 0), 4, B, 0)
    assert layout.anchors.tolist() == [[0]] and layout.valid.tolist() == [[False]]


@pytest.mark.parametrize(("count", "blocks"), [(1, 8), (8, 8), (9, 16), (150, 152), (512, 512)])
def test_a_gpu_computes_as_many_blocks_as_the_fullest_document_has_by_eights(count, blocks):
    """Not all of `num_anchors`: 512 blocks for 150 candidates are 70% waste."""
    assert padded(count, on_gpu=True) == blocks and padded(count, on_gpu=False) == count


# --- layers


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        (36, 5, (1, 9, 17, 25, 33)),
        (64, 5, (1, 16, 31, 46, 61)),
        (32, 5, (1, 8, 15, 22, 29)),
        (36, 1, (18,)),
        (6, 2, (1, 3)),
        (6, 3, (1, 2, 3)),
    ],
)
def test_default_layers_are_the_published_ones(layers, count, expected):
    assert default_layer_ids(layers, count) == check_layer_ids(expected, layers) == expected


@pytest.mark.parametrize("layer_ids", [(), (3, 1), (2, 2), (-1, 2), (1, 5), (0, 6)])
def test_layers_that_servers_sort_merge_or_miss_are_refused(tiny_target, layer_ids):
    with pytest.raises(UserError, match=r"draft.target_layer_ids=\[.*ascend strictly and lie in 0..4"):
        make_method(tiny_target, target_layer_ids=layer_ids)


@pytest.mark.parametrize("mask_token_id", [-1, 64])
def test_a_mask_token_that_the_embedding_does_not_hold_is_refused(tiny_target, mask_token_id):
    from torchspec.methods.block.format import draft_config

    with pytest.raises(UserError, match=f"draft.mask_token_id={mask_token_id} lies outside the target's vocabulary 0..63"):
        draft_config(DFlashConfig(num_layers=2), tiny_target.config, (64, 32), mask_token_id)


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 65), ("hidden_size", 16), ("num_target_layers", 7)])
def test_a_draft_of_another_target_is_refused(tiny_method, tiny_target, key, value):
    config = type(tiny_method.config).from_dict(tiny_method.config.to_dict())
    assert DFlash.from_config(config, tiny_target).layer_ids == tiny_method.layer_ids
    setattr(config, key, value)
    with pytest.raises(ContractError, match=f"made for a target with .*{value}.* give the target that it was trained for"):
        DFlash.from_config(config, tiny_target)


@pytest.mark.parametrize("layer_ids", [[3, 1], [1, 5]])
def test_a_draft_with_layers_that_cannot_be_captured_is_refused(tiny_method, tiny_target, layer_ids):
    config = type(tiny_method.config).from_dict(tiny_method.config.to_dict())
    config.dflash_config = {**config.dflash_config, "target_layer_ids": layer_ids}
    with pytest.raises(UserError, match="target_layer_ids"):
        DFlash.from_config(config, tiny_target)


# --- mask token


def tokenizer(words: int, special: tuple[str, ...], **roles) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, **roles)


def test_a_padding_row_of_the_embedding_is_taken_first():
    assert choose_mask_token(tokenizer(10, ("<a>",)), (torch.arange(12) < 11).float(), None) == 11
    assert choose_mask_token(tokenizer(10, ("<a>",)), torch.zeros(64), None) == 11


def test_else_the_last_special_token_without_another_use():
    """Ids 10..15: pad, unused, used in the data, end of text, in the chat template, unused but beyond the embedding."""
    tokens = ("<pad>", "<free>", "<data>", "<eos>", "<turn>", "<beyond>")
    chosen = tokenizer(10, tokens, pad_token="<pad>", eos_token="<eos>")
    chosen.chat_template = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}"
    counts = torch.zeros(15)
    counts[12] = 3
    assert choose_mask_token(chosen, counts, None) == 11
    counts[11] = 1
    with pytest.raises(UserError, match="no unused special token.*set draft.mask_token_id"):
        choose_mask_token(chosen, counts, None)


def test_no_template_role_or_end_of_turn_lends_its_token():
    """Ids 10..14: free, in a template by another name, in the tool template, named like a role, an end of turn."""
    chosen = tokenizer(10, ("<free>", "<call>", "<tools>", "<|assistant|>", "<stop>"))
    chosen.chat_template = {"default": "{{ messages }}<call>", "tool_use": "<tools>{{ tools }}"}
    assert choose_mask_token(chosen, torch.zeros(15), None, frozenset([14])) == 10
    with pytest.raises(UserError, match="draft.mask_token_id=14 is '<stop>', which ends, marks or opens turns"):
        choose_mask_token(chosen, torch.zeros(15), 14, frozenset([14]))


def test_a_tokenizer_whose_ids_have_gaps_does_not_lend_a_token_in_use():
    """12 tokens with ids 0..9, 12 and 13: their number names the thirteenth row, and text has it."""
    core = Tokenizer(WordLevel({f"w{i}": i for i in (*range(10), 12, 13)}, unk_token="w0"))
    counts = torch.zeros(16)
    counts[[*range(10), 12, 13]] = 1
    assert choose_mask_token(PreTrainedTokenizerFast(tokenizer_object=core), counts, None) in (10, 11, 14, 15)


def test_an_explicit_mask_token_must_exist_and_never_occur():
    counts = torch.zeros(20)
    counts[7] = 5
    assert choose_mask_token(tokenizer(20, ()), counts, 19) == 19
    with pytest.raises(UserError, match="draft.mask_token_id=7 occurs 5 times in the training data"):
        choose_mask_token(tokenizer(20, ()), counts, 7)
    for outside in (-1, 20):
        with pytest.raises(UserError, match=f"draft.mask_token_id={outside} lies outside the target's vocabulary 0..19"):
            choose_mask_token(tokenizer(20, ()), counts, outside)
