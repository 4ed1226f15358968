"""Features on the wire and on disk: the same bits, or the rounding of e4m3; bounded, and never those of another target."""

from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import HIDDEN, LAYERS, random_features, random_prompt, write_target
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.capture.replay import ReplayCapture
from torchspec.errors import ContractError
from torchspec.records import Prompt
from torchspec.transfer.codec import decode, encode

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_travel_bit_by_bit(dtype):
    features = random_features("0001111")
    features = replace(features, context=features.context.to(dtype))
    wire = encode(features, fp8=False)
    wire.data.flags.writeable = False  # as a store hands it out
    back = decode(wire, features.prompt, CPU, torch.float32)
    assert torch.equal(back.context, features.context) and back.context.dtype == dtype
    assert (back.layer_ids, back.producer) == (features.layer_ids, features.producer) and wire.nbytes == features.context.nbytes


def test_fp8_rounds_to_three_bits_of_mantissa_whatever_the_size_of_token_and_layer():
    """e4m3 has steps of 1/8: a value moves by at most 1/16 of itself, or by half of the smallest step of its token and layer."""
    features = random_features("0001111111")
    sizes = torch.logspace(-3, 4, 10)[:, None] * torch.tensor([1.0, 50.0]).repeat_interleave(HIDDEN)  # per token and per layer
    features = replace(features, context=features.context * sizes)
    wire = encode(features, fp8=True)
    back = decode(wire, features.prompt, CPU, torch.float32).context
    largest = features.context.unflatten(1, (len(LAYERS), -1)).abs().amax(-1, keepdim=True).expand(-1, -1, HIDDEN).flatten(1)
    allowed = torch.maximum(features.context.abs() / 16, largest / 448 * 2**-10) * 1.001
    assert ((back - features.context).abs() <= allowed).all()
    assert wire.data.nbytes == features.context.numel()


def prompt(index: int, length: int) -> Prompt:
    ids = random_prompt(index, length)
    return Prompt(index, ids, torch.arange(length) > 1)


class Counting(HFCapture):
    asked = 0

    def capture(self, prompt):
        self.asked += 1
        return super().capture(prompt)


@pytest.mark.parametrize("fp8", [False, True])
def test_what_is_kept_comes_back_in_the_next_run_and_the_disk_is_bounded(tiny_folder, tmp_path, fp8):
    spec = CaptureSpec(tiny_folder, LAYERS, torch.float32)
    samples, row = [prompt(0, 20), prompt(1, 30)], HIDDEN * len(LAYERS) * (1 if fp8 else 4) + (8 if fp8 else 0)
    limit = 20 * row  # the first fits, the second does not
    first = Counting(spec)
    made = [ReplayCapture(first, spec, tmp_path, limit, fp8).capture(s) for s in samples]
    second = Counting(spec)
    again = ReplayCapture(second, spec, tmp_path, limit, fp8)
    for sample, features in zip(samples, made, strict=True):
        assert torch.equal(again.capture(sample).context, features.context)
        assert fp8 or torch.equal(features.context, first.capture(sample).context)
    assert second.asked == 1 and len(list(tmp_path.glob("*/*.safetensors"))) == 1


def test_a_folder_of_other_layers_is_refused(tiny_folder, tmp_path):
    for layers in (LAYERS, (2, 3)):
        spec = CaptureSpec(tiny_folder, layers, torch.float32)
        if layers == LAYERS:
            ReplayCapture(HFCapture(spec), spec, tmp_path, 10**6, False)
        else:
            with pytest.raises(ContractError, match=r"layer_ids: \[1, 3\] -> \[2, 3\].*set another inference.replay_dir"):
                ReplayCapture(HFCapture(spec), spec, tmp_path, 10**6, False)


def test_features_of_other_weights_under_the_same_name_are_refused(tmp_path):
    spec = CaptureSpec(write_target(tmp_path / "target"), LAYERS, torch.float32)
    kept = HFCapture(spec)
    ReplayCapture(kept, spec, tmp_path / "replay", 10**6, False).capture(prompt(0, 20))
    write_target(tmp_path / "target", initializer_range=0.2)
    with pytest.raises(ContractError, match=r"target: '\w{16}' -> '\w{16}'.*set another inference.replay_dir"):
        ReplayCapture(kept, spec, tmp_path / "replay", 10**6, False)


def test_features_without_a_manifest_or_with_half_of_one_are_of_unknown_origin(tiny_folder, tmp_path):
    spec = CaptureSpec(tiny_folder, LAYERS, torch.float32)
    ReplayCapture(HFCapture(spec), spec, tmp_path, 10**6, False).capture(prompt(0, 20))
    (tmp_path / "manifest.json").write_text('{"target"')
    with pytest.raises(ContractError, match="manifest.json is damaged"):
        ReplayCapture(HFCapture(spec), spec, tmp_path, 10**6, False)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ContractError, match="holds features, but no manifest.json of them"):
        ReplayCapture(HFCapture(spec), spec, tmp_path, 10**6, False)


@pytest.mark.parametrize("damage", ["cut", "nan"])
def test_a_kept_file_that_is_damaged_is_refused(tiny_folder, tmp_path, damage):
    spec = CaptureSpec(tiny_folder, LAYERS, torch.float32)
    replay = ReplayCapture(HFCapture(spec), spec, tmp_path, 10**6, False)
    replay.capture(prompt(0, 20))
    (file,) = tmp_path.glob("*/*.safetensors")
    content = bytearray(file.read_bytes())
    content[-4:] = b"\0\0\xc0\x7f"  # a float32 that is no number
    file.write_bytes(content[:-9] if damage == "cut" else content)
    with pytest.raises(ContractError, match={"cut": "is damaged .*; delete it", "nan": "features hold NaN or infinity"}[damage]):
        replay.capture(prompt(0, 20))
