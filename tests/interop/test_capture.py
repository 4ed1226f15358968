"""Engines yield the features of Transformers: the conformance test of every capture backend, and a planted shift of the layers."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.interop.conftest import in_vllm
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import check_features
from torchspec.capture.hf import HFCapture
from torchspec.data.dataset import open_or_prepare
from torchspec.errors import ContractError
from torchspec.records import Features, Prompt

LAYERS = {"dflash": (1, 14, 27), "eagle3": (1, 14, 26, 29)}  # the last one is what the backend checks itself against, too
SAMPLES = 12


@pytest.fixture(scope="module")
def samples(target_folder, tmp_path_factory) -> list[Prompt]:
    data = Path(str(files("torchspec.demo"))) / "heldout.jsonl"
    dataset = open_or_prepare(str(data), tmp_path_factory.mktemp("capture"), target_folder)
    return [dataset[i] for i in range(SAMPLES)]


@pytest.fixture(scope="module", params=LAYERS)
def layers(request) -> tuple[int, ...]:
    return LAYERS[request.param]


@pytest.fixture(scope="module")
def vllm(target_folder, layers, samples, tmp_path_factory) -> tuple[dict, list[Features]]:
    folder = tmp_path_factory.mktemp("vllm-capture")
    request = {
        "target": str(target_folder.resolve()), "layer_ids": layers, "prompts": [s.ids.tolist() for s in samples],
        "file": str(folder / "features.safetensors"),
    }  # fmt: skip
    answer = in_vllm("vllm_capture.py", request, folder)
    contexts = load_file(request["file"])
    return answer, [Features(s, contexts[str(i)], layers, answer["producer"]) for i, s in enumerate(samples)]


@pytest.fixture(scope="module")
def oracle(target_folder, layers) -> HFCapture:
    return HFCapture(CaptureSpec(target_folder, layers, torch.bfloat16))


def test_vllm_features_are_those_of_transformers(vllm, oracle):
    answer, features = vllm
    for sample in features:
        check_features(sample.check(), oracle)
    print(f"\n{answer['producer']}: {SAMPLES} samples agree, {answer['tokens_per_second']:.0f} tok/s one at a time, own next token "
          f"{answer['agreement']:.0%}")  # fmt: skip
    assert answer["left_in_shared_memory"] == 0 and answer["agreement"] >= 0.75


def test_a_shift_of_the_layers_is_named(vllm, oracle, layers):
    shifted = dataclasses.replace(vllm[1][0], layer_ids=tuple(z - 1 for z in layers))
    with pytest.raises(ContractError, match="output of layer 1, so the layer-id convention is off"):
        check_features(shifted, oracle)
