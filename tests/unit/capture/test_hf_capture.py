"""Capture in process: features are Transformers' own hidden states, no layer above the last one runs, cached steps agree."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.capture.conftest import REAL_LAYERS
from tests.unit.tiny import HIDDEN, LAYERS, random_prompt
from torchspec.capture.base import CaptureSpec, open_capture
from torchspec.capture.cache import CachedCapture
from torchspec.capture.hf import MOST_PADDING, HFCapture, similar_lengths
from torchspec.errors import EngineMismatch, UserError
from torchspec.records import Prompt


def prompt(index: int, length: int = 20) -> Prompt:
    return Prompt(index, random_prompt(index, length), torch.arange(length) > 5)


@torch.inference_mode()
def hidden_states(oracle: HFCapture, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(s[0] for s in oracle.model(input_ids=ids[None], use_cache=False, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("layer_ids", [(0,), (1, 3), (0, 1, 2, 3, 4), (4,), (5,)])
def test_features_are_the_outputs_of_the_named_layers_bitwise_and_no_layer_above_runs(tiny_folder, layer_ids):
    """z = 5 is the last layer: its output is taken before the final norm, where hidden_states[6] is taken behind it."""
    oracle, ran = HFCapture(CaptureSpec(tiny_folder, layer_ids, torch.float32)), []
    layers = oracle.model.get_decoder().layers
    for z, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, z=z: ran.append(z))
    features = oracle.capture(prompt(0))
    assert ran == list(range(layer_ids[-1] + 1))
    kept = []
    layers[5].register_forward_hook(lambda _m, _i, out: kept.append((out[0] if isinstance(out, tuple) else out).view(20, HIDDEN)))
    states = hidden_states(oracle, features.prompt.ids)
    expected = torch.cat([states[z + 1] if z < 5 else kept[0] for z in layer_ids], dim=-1)
    assert torch.equal(features.context, expected) and features.layer_ids == layer_ids


def test_real_features_in_bfloat16_are_bitwise_hidden_states_of_z_plus_one(real_oracle, real_prompt, real_states):
    """Bitwise although it is bfloat16: the same operations run in the same order, only fewer of them."""
    features = real_oracle.capture(real_prompt)
    assert features.context.dtype == torch.bfloat16
    assert torch.equal(features.context, torch.cat([real_states[z + 1] for z in REAL_LAYERS], dim=-1))


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 4, 8]])
def test_cached_steps_yield_the_logits_and_features_of_one_forward(tiny_oracle, pieces):
    ids, cache, logits, context = random_prompt(0, 20), tiny_oracle.new_cache(), [], []
    for part in ids.split(pieces):
        for kept, new in zip((logits, context), tiny_oracle.step(part, cache), strict=True):
            kept.append(new)
    whole = tiny_oracle.model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(torch.cat(logits), whole, rtol=1e-4, atol=1e-4)  # float32; attention adds in another order
    torch.testing.assert_close(torch.cat(context), tiny_oracle.features(ids[None])[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cat(logits).argmax(-1), whole.argmax(-1))


def test_a_cropped_cache_goes_on_as_if_the_rejected_tokens_had_never_been(tiny_oracle):
    ids, wrong, cache = random_prompt(0, 20), random_prompt(1, 5), tiny_oracle.new_cache()
    tiny_oracle.step(ids[:12], cache)
    tiny_oracle.step(torch.cat((ids[12:14], wrong)), cache)
    cache.crop(-5)
    logits, context = tiny_oracle.step(ids[14:], cache)
    torch.testing.assert_close(logits, tiny_oracle.model(input_ids=ids[None]).logits[0, 14:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(context, tiny_oracle.features(ids[None])[0][14:], rtol=1e-4, atol=1e-4)


def test_only_the_last_logits_are_made_when_only_they_are_asked_for(tiny_oracle):
    ids = random_prompt(0, 9)
    logits, context = tiny_oracle.step(ids, tiny_oracle.new_cache(), logits_to_keep=1)
    assert logits.shape == (1, 64) and context.shape == (9, HIDDEN * len(LAYERS))
    torch.testing.assert_close(logits[0], tiny_oracle.model(input_ids=ids[None]).logits[0, -1], rtol=1e-4, atol=1e-4)


def test_capture_is_a_pure_function_of_the_prompt(tiny_oracle):
    """Whatever ran before: another capture, a cached step. And a capture that was handed out does not change any more."""
    first = tiny_oracle.capture(prompt(0))
    before = first.context.clone()
    tiny_oracle.step(random_prompt(3, 30), tiny_oracle.new_cache())
    tiny_oracle.capture(prompt(1))
    assert torch.equal(first.context, before) and torch.equal(tiny_oracle.capture(prompt(0)).context, before)


def test_captured_features_can_enter_a_graph_for_backward(tiny_oracle):
    weight = torch.ones(HIDDEN * len(LAYERS), requires_grad=True)
    features = tiny_oracle.capture(prompt(0)).context
    (features * weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum(0))


@pytest.mark.parametrize("layer_ids", [(), (1, 6), (7,)])
def test_layers_that_the_target_has_not_are_refused(tiny_folder, layer_ids):
    with pytest.raises(UserError, match=r"layer ids \[.*\] do not fit target .*, which has layers 0..5"):
        HFCapture(CaptureSpec(tiny_folder, layer_ids, torch.float32))


def test_a_target_whose_file_lacks_a_weight_is_refused(tiny_folder, tmp_path):
    """Transformers fills it with random numbers and says so in a log line; a draft would learn from noise."""
    folder = tmp_path / "target"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="model.layers.2.mlp.up_proj.weight"):
        HFCapture(CaptureSpec(folder, LAYERS, torch.float32))


def test_a_missing_engine_is_refused_with_its_extra(tiny_folder):
    spec = CaptureSpec(tiny_folder, LAYERS, torch.float32)
    assert type(open_capture("hf", spec)) is HFCapture
    with pytest.raises(UserError, match=r"inference_engine_type=vllm needs vllm: pip install 'torchspec\[vllm\]'"):
        open_capture("vllm", spec)


class Counting(HFCapture):
    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def capture(self, prompt):
        self.asked.append(prompt.index)
        return super().capture(prompt)


def test_the_cache_keeps_the_first_that_fit_and_returns_them_bitwise(tiny_folder):
    inner = Counting(CaptureSpec(tiny_folder, LAYERS, torch.float32))
    prompts = [prompt(0, 20), prompt(1, 30), prompt(2, 10), prompt(3, 20)]
    row = HIDDEN * len(LAYERS) * 4  # bytes of one token's features
    cached = CachedCapture(inner, 30 * row, torch.device("cpu"))
    epochs = [[cached.capture(p) for p in prompts] for _ in range(3)]
    assert inner.asked == [0, 1, 2, 3] + [1, 3] * 2  # 20 + 10 rows fit, 30 more or 20 more do not
    assert cached.bytes == 30 * row == sum(kept.context.nbytes for kept in cached.kept.values())
    for epoch in epochs:
        for p, features in zip(prompts, epoch, strict=True):
            assert torch.equal(features.context, inner.capture(p).context)
            assert features.prompt is p and (features.layer_ids, features.producer) == (inner.layer_ids, inner.producer)


def test_a_cache_of_no_bytes_keeps_nothing(tiny_folder):
    inner = Counting(CaptureSpec(tiny_folder, LAYERS, torch.float32))
    cached = CachedCapture(inner, 0, torch.device("cpu"))
    for _ in range(3):
        cached.capture(prompt(0))
    assert inner.asked == [0, 0, 0] and cached.bytes == 0


def test_a_sliding_window_target_is_captured_and_decoded_beyond_its_window(tmp_path):
    """Mistral with a window of 8: features of 30 tokens equal hidden_states, and cached steps equal one forward."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=8, head_dim=8, initializer_range=0.3, dtype="float32",
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sliding_window"] == 8
    oracle, ids, cache = HFCapture(CaptureSpec(tmp_path, (0, 1), torch.float32)), random_prompt(0, 30), None
    states = hidden_states(oracle, ids)
    assert torch.equal(oracle.features(ids[None])[0], torch.cat((states[1], states[2]), dim=-1))
    cache, context = oracle.new_cache(), []
    for part in ids.split([12, 1, 4, 13]):
        context.append(oracle.step(part, cache)[1])
    torch.testing.assert_close(torch.cat(context), oracle.features(ids[None])[0], rtol=1e-4, atol=1e-4)


def test_groups_hold_every_prompt_once_and_little_padding():
    lengths = torch.randint(2, 2000, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = similar_lengths(lengths)
    assert sorted(i for group in groups for i in group) == list(range(300))
    assert len(groups) < 80  # a prompt for itself would be 300
    for group in groups:
        assert max(lengths[i] for i in group) <= (1 + MOST_PADDING) * min(lengths[i] for i in group)


def test_a_batch_yields_each_prompts_own_features_in_their_order(tiny_oracle):
    """Oracle: each prompt alone. Float32, other shapes: another order of additions."""
    prompts = [Prompt(i, random_prompt(i, n), torch.arange(n) > 1) for i, n in enumerate((40, 9, 43, 10, 41, 90))]
    together = tiny_oracle.capture_batch(prompts)
    assert [features.prompt.index for features in together] == list(range(6))
    for prompt, features in zip(prompts, together, strict=True):
        torch.testing.assert_close(features.context, tiny_oracle.capture(prompt).context, rtol=1e-4, atol=1e-4)


def test_a_target_that_goes_wrong_in_the_middle_of_a_run_is_noticed(tiny_folder, monkeypatch):
    """Planted: the engine's final norm changes after the start. The check is repeated and fires."""
    monkeypatch.setattr("torchspec.capture.check.CHECK_EVERY", 10)
    oracle = HFCapture(CaptureSpec(tiny_folder, LAYERS, torch.float32))
    prompts = [prompt(i) for i in range(4)]
    oracle.verify(prompts)
    for _ in range(4):
        oracle.capture_batch(prompts)
    oracle.model.get_decoder().norm.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    with pytest.raises(EngineMismatch, match="final norm"):
        for _ in range(4):
            oracle.capture_batch(prompts)
