"""Engines yield the features of Transformers: the conformance test of every capture backend, and a planted shift of the layers."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.interop.conftest import DATA, in_engine
from tests.interop.running import OTHERS, running
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import ROUNDING, check_features
from torchspec.capture.hf import HFCapture
from torchspec.capture.spread import open_server
from torchspec.data.dataset import open_or_prepare
from torchspec.errors import ContractError
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import decode, encode

WHOLE, ROUNDED = (1, 14, 27), (1, 14, 26, 29)  # an engine starts for each in a minute; it needs the last layer for itself, too
SAMPLES, LENGTH = 6, 96


@pytest.fixture(scope="module")
def samples(target_folder, tmp_path_factory) -> list[Prompt]:
    dataset = open_or_prepare(str(DATA), tmp_path_factory.mktemp("capture"), target_folder)
    whole = [dataset[i] for i in range(SAMPLES)]
    return [Prompt(prompt.index, prompt.ids[:LENGTH], prompt.loss_mask[:LENGTH]) for prompt in whole]


def captured(
    engine: str, target: Path, layers: tuple[int, ...], samples: list[Prompt], folder: Path, **options
) -> tuple[dict, list[Features]]:
    request = {
        "engine": engine, "target": str(target.resolve()), "layer_ids": layers, "prompts": [s.ids.tolist() for s in samples],
        "file": str(folder / "features.safetensors"), "fp8": False, **options,
    }  # fmt: skip
    answer = in_engine(engine, "engine_capture.py", request, folder)
    contexts = load_file(request["file"])
    return answer, [Features(s, contexts[str(i)], layers, answer["producer"]) for i, s in enumerate(samples)]


Captured = tuple[dict, list[Features]]


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(name, target_folder, samples, tmp_path_factory) -> Captured:
    return captured(name, target_folder, WHOLE, samples, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def rounded(name, target_folder, samples, tmp_path_factory) -> list[Features]:
    """In fp8: SGLang's as above, vLLM's as a server's that is asked over the network."""
    folder = tmp_path_factory.mktemp(f"{name}-rounded")
    if name == "sglang":
        return captured(name, target_folder, ROUNDED, samples, folder, fp8=True)[1]
    spec, url = CaptureSpec(target_folder.resolve(), ROUNDED, torch.bfloat16, max_length=1024, fp8=True), f"http://{OTHERS}:30137"
    with running(name, spec, [url], folder):
        server = open_server(name, spec, url)
        server.verify(samples)
        return [widened(server.capture(sample)) for sample in samples]


def widened(features: Features) -> Features:
    return decode(encode(features, fp8=True), features.prompt, torch.device("cpu"), torch.bfloat16)


@pytest.fixture(scope="module")
def oracle(target_folder) -> HFCapture:
    return HFCapture(CaptureSpec(target_folder, WHOLE, torch.bfloat16))


def test_features_are_those_of_transformers(whole, oracle):
    answer, features = whole
    for sample in features:
        check_features(sample.check(), oracle)
    print(f"\n{answer['producer']}: {SAMPLES} samples agree, {answer['tokens_per_second']:.0f} tok/s one at a time, own next token "
          f"{answer['agreement']:.0%}")  # fmt: skip
    assert answer["left_in_shared_memory"] == 0 and answer["agreement"] >= 0.75


def test_so_are_rounded_ones_and_the_last_layers(rounded, oracle):
    for sample in rounded:
        check_features(sample.check(), oracle)


def test_a_batch_yields_the_features_of_each_prompt(whole):
    assert whole[0]["largest_batch_error"] < ROUNDING[torch.bfloat16]


def test_what_the_engine_rounds_is_what_we_would_have_rounded(whole, rounded):
    """Oracle: our own rounding of the states that the same engine gave whole, of the two layers that both were asked for.

    These are two runs of the engine, which need not add up in one order, so some values differ by a step of fp8. The scale of another
    row or layer moves nearly all, and further.
    """
    for ours, theirs in zip(whole[1], rounded, strict=True):
        for mine, engines in list(zip(widened(ours).context.chunk(len(WHOLE), 1), theirs.context.chunk(len(ROUNDED), 1), strict=False))[:2]:
            assert (mine == engines).float().mean() > 0.5
            difference, size = (torch.linalg.vector_norm(x.float(), dim=1) for x in (mine - engines, mine))
            assert (difference < ROUNDING[torch.bfloat16] * size).all()


def test_a_shift_of_the_layers_is_named(whole, oracle):
    shifted = dataclasses.replace(whole[1][0], layer_ids=tuple(z - 1 for z in WHOLE))
    with pytest.raises(ContractError, match="output of layer 1, so the layer-id convention is off"):
        check_features(shifted, oracle)
