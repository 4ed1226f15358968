"""Anchors, labels, weights and formats of DFlash against slow loops and published values."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, Qwen3Config

from torchspec.errors import UserError
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.dflash.format import check_layer_ids, default_layer_ids, draft_config
from torchspec.methods.dflash.mask_token import choose_mask_token
from torchspec.methods.dflash.method import DFlash, block_labels, sample_anchors
from torchspec.records import Batch
from torchspec.target import FrozenTarget

B = 4
MASKS = ["000111110000111100", "00111111111", "000010", "0001"]  # two answers, one answer, no room for an anchor, none either


def batch(order=(0, 1, 2, 3), epoch=0, width=6) -> Batch:
    masks = [torch.tensor([c == "1" for c in MASKS[n]]) for n in order]
    g = torch.Generator().manual_seed(0)
    total = sum(map(len, masks))
    ids, context = torch.randint(60, (total,), generator=g), torch.randn(total, width, generator=g)
    return Batch(ids, torch.cat(masks), context, tuple(map(len, masks)), tuple(order), epoch).check()


def test_anchors_are_supervised_and_so_is_what_follows_without_repetition_in_order():
    layout = sample_anchors(batch(), 100, B, seed=3)
    for n, mask in enumerate(MASKS):
        drawn = layout.anchors[n][layout.valid[n]].tolist()
        assert drawn == [t for t in range(len(mask) - 1) if mask[t : t + 2] == "11"]
    few = sample_anchors(batch(), 3, B, seed=3)
    for n in (0, 1):
        drawn = few.anchors[n][few.valid[n]].tolist()
        assert len(drawn) == 3 == len(set(drawn)) and drawn == sorted(drawn)


def test_the_draw_depends_on_seed_epoch_and_sample_alone():
    alone, together = sample_anchors(batch((1,)), 3, B, 0), sample_anchors(batch(), 3, B, 0)
    assert torch.equal(alone.anchors[0], together.anchors[1])
    draws = {tuple(sample_anchors(batch((1,), epoch), 3, B, 0).anchors[0].tolist()) for epoch in range(8)}
    assert len(draws) > 3


def test_labels_end_with_the_answer_and_with_the_document():
    b = batch()
    layout = sample_anchors(b, 100, B, seed=0)
    labels, mask = block_labels(b, layout)
    start = 0
    for n, pattern in enumerate(MASKS):
        for a in range(layout.anchors.shape[1]):
            anchor, going = int(layout.anchors[n, a]), bool(layout.valid[n, a])
            for k in range(1, B):
                going = going and anchor + k < len(pattern) and pattern[anchor + k] == "1"
                assert bool(mask[n, a, k]) == going
                assert not going or labels[n, a, k] == b.ids[start + anchor + k]
        assert not mask[n, :, 0].any()
        start += len(pattern)


def small_target(hidden=6, embedding=8) -> FrozenTarget:
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=hidden,
        intermediate_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    table = torch.randn(61, embedding, generator=torch.Generator().manual_seed(0))
    return FrozenTarget(None, config, table, table, torch.ones(hidden))


def test_features_of_another_width_than_the_embedding_train():
    target = small_target()
    options = DFlashConfig(num_layers=1, block_size=B, num_anchors=8, target_layer_ids=(2,))
    method = DFlash(draft_config(options, target.config, (61, 8), 60), target, options, torch.ones(61))
    assert method.config.target_hidden_size == 6
    model = method.build(torch.Generator().manual_seed(0))
    loss_sum, weight_sum, metrics = method.loss(model, batch(), seed=0)
    loss_sum.backward()
    assert torch.isfinite(loss_sum) and weight_sum > 0 and model.fc.weight.grad.abs().sum() > 0
    counts = metrics["slot_accuracy"][1]
    slots = torch.arange(B - 1)
    torch.testing.assert_close(weight_sum, (counts * torch.exp(-slots / 7.0)).sum(), rtol=1e-5, atol=0.0)  # exp(-(k-1)/gamma), k = slot


def test_a_batch_without_anchors_has_no_weight_and_no_gradient():
    target = small_target()
    options = DFlashConfig(num_layers=1, block_size=B, target_layer_ids=(2,))
    method = DFlash(draft_config(options, target.config, (61, 8), 60), target, options, torch.ones(61))
    model = method.build(torch.Generator().manual_seed(0))
    loss_sum, weight_sum, _ = method.loss(model, batch((2, 3)), seed=0)
    loss_sum.backward()
    assert loss_sum == 0 and weight_sum == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_default_layers_are_the_published_ones():
    assert default_layer_ids(36, 5) == (1, 9, 17, 25, 33)
    assert default_layer_ids(64, 5) == (1, 16, 31, 46, 61)
    assert default_layer_ids(30, 1) == (15,)


@pytest.mark.parametrize("layer_ids", [(), (3, 1), (1, 1), (-1, 2), (1, 5)])
def test_layers_that_a_server_would_permute_or_miss_are_refused(layer_ids):
    with pytest.raises(UserError, match="target_layer_ids"):
        check_layer_ids(layer_ids, 6)


def test_rotary_settings_that_drafts_do_not_have_stay_behind():
    rope = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5, "mrope_section": [1, 1]}
    target = Qwen3Config(hidden_size=8, num_hidden_layers=6, rope_parameters=rope)
    config = draft_config(DFlashConfig(num_layers=2), target, (61, 8), 60)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}


def test_the_mask_token_is_one_that_never_occurs(target_folder):
    tokenizer = AutoTokenizer.from_pretrained(target_folder)
    counts = torch.zeros(49152)
    assert choose_mask_token(tokenizer, counts, None) == 16  # <empty_output>: special, unused by template and data
    counts[16] = 1
    assert choose_mask_token(tokenizer, counts, None) == 15
    padded = torch.zeros(49152 + 64)
    assert choose_mask_token(tokenizer, padded, None) == 49152  # a row of the table that no text can name
    assert choose_mask_token(tokenizer, counts, 9) == 9
    for explicit in (16, -1, 49152):
        with pytest.raises(UserError, match="mask_token_id"):
            choose_mask_token(tokenizer, counts, explicit)
    counts[:17] = 1
    with pytest.raises(UserError, match="mask_token_id"):
        choose_mask_token(tokenizer, counts, None)
