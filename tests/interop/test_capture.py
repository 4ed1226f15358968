"""Engines yield the features of Transformers: the conformance test of every capture backend, and a planted shift of the layers."""

import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.interop.conftest import in_engine
from tests.interop.running import OTHERS, running
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import ROUNDING, check_features
from torchspec.capture.hf import HFCapture
from torchspec.capture.spread import open_server
from torchspec.data.dataset import open_or_prepare
from torchspec.errors import ContractError
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import decode, encode

LAYERS = {"dflash": (1, 14, 27), "eagle3": (1, 14, 26, 29)}  # the last one is what the backend checks itself against, too
SAMPLES = 12
ONE_SET = pytest.mark.parametrize("layers", ["dflash"], indirect=True)  # where the layers make no difference: an engine starts in a minute


@pytest.fixture(scope="module")
def samples(target_folder, tmp_path_factory) -> list[Prompt]:
    data = Path(str(files("torchspec.demo"))) / "heldout.jsonl"
    dataset = open_or_prepare(str(data), tmp_path_factory.mktemp("capture"), target_folder)
    return [dataset[i] for i in range(SAMPLES)]


@pytest.fixture(scope="module", params=LAYERS)
def layers(request) -> tuple[int, ...]:
    return LAYERS[request.param]


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


@pytest.fixture(scope="module", params=["vllm", "sgl"])
def engine(request, target_folder, layers, samples, tmp_path_factory) -> tuple[dict, list[Features]]:
    return captured(request.param, target_folder, layers, samples, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def oracle(target_folder, layers) -> HFCapture:
    return HFCapture(CaptureSpec(target_folder, layers, torch.bfloat16))


def check(answer: dict, features: list[Features], oracle: HFCapture) -> None:
    for sample in features:
        check_features(sample.check(), oracle)
    print(f"\n{answer['producer']}: {SAMPLES} samples agree, {answer['tokens_per_second']:.0f} tok/s one at a time, own next token "
          f"{answer['agreement']:.0%}")  # fmt: skip
    assert answer["left_in_shared_memory"] == 0 and answer["agreement"] >= 0.75


def test_features_are_those_of_transformers(engine, oracle):
    check(*engine, oracle)


def test_a_batch_yields_the_features_of_each_prompt(engine):
    assert engine[0]["largest_batch_error"] < ROUNDING[torch.bfloat16]


@ONE_SET
def test_what_the_engine_rounds_is_what_we_would_have_rounded(engine, target_folder, layers, samples, tmp_path):
    """Oracle: our own rounding of the states that the same engine gave whole. vLLM's rounds as a server that is asked over the network."""
    if engine[0]["producer"].startswith("vllm"):
        rounded = by_a_server("vllm", target_folder, layers, samples, tmp_path)
    else:
        rounded = captured("sgl", target_folder, layers, samples, tmp_path, fp8=True)[1]
    for ours, theirs in zip(engine[1], rounded, strict=True):
        assert torch.equal(widened(ours).context, theirs.context)


def by_a_server(engine: str, target: Path, layers: tuple[int, ...], samples: list[Prompt], folder: Path) -> list[Features]:
    """What a running one rounds; the engine is not installed in this environment."""
    spec, url = CaptureSpec(target.resolve(), layers, torch.bfloat16, max_length=1024, fp8=True), f"http://{OTHERS}:30137"
    with running(engine, spec, [url], folder):
        server = open_server(engine, spec, url)
        server.verify(samples)
        return [widened(server.capture(sample)) for sample in samples]


def widened(features: Features) -> Features:
    return decode(encode(features, fp8=True), features.prompt, torch.device("cpu"), torch.bfloat16)


def test_a_shift_of_the_layers_is_named(engine, oracle, layers):
    shifted = dataclasses.replace(engine[1][0], layer_ids=tuple(z - 1 for z in layers))
    with pytest.raises(ContractError, match="output of layer 1, so the layer-id convention is off"):
        check_features(shifted, oracle)
