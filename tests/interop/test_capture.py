"""Engines yield the features of Transformers: the conformance test of every capture backend, and a planted shift of the layers."""

import dataclasses
import os
import shlex
import signal
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.interop.conftest import DATA, ENGINES, environment, in_engine
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import ROUNDING, check_features
from torchspec.capture.hf import HFCapture
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
        "file": str(folder / "features.safetensors"), "server_url": None, "fp8": False, **options,
    }  # fmt: skip
    answer = in_engine(engine, "engine_capture.py", request, folder)
    contexts = load_file(request["file"])
    return answer, [Features(s, contexts[str(i)], layers, answer["producer"]) for i, s in enumerate(samples)]


Captured = tuple[dict, list[Features]]


@pytest.fixture(scope="module", params=["vllm", "sgl"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(name, target_folder, samples, tmp_path_factory) -> Captured:
    return captured(name, target_folder, WHOLE, samples, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def rounded(name, target_folder, samples, tmp_path_factory) -> Captured:
    return captured(name, target_folder, ROUNDED, samples, tmp_path_factory.mktemp(name), fp8=True)


@pytest.fixture(scope="module")
def oracle(target_folder) -> HFCapture:
    return HFCapture(CaptureSpec(target_folder, WHOLE, torch.bfloat16))


def check(answer: dict, features: list[Features], oracle: HFCapture) -> None:
    for sample in features:
        check_features(sample.check(), oracle)
    print(f"\n{answer['producer']}: {SAMPLES} samples agree, {answer['tokens_per_second']:.0f} tok/s one at a time, own next token "
          f"{answer['agreement']:.0%}")  # fmt: skip
    assert answer["left_in_shared_memory"] == 0 and answer["agreement"] >= 0.75


def test_features_are_those_of_transformers(whole, oracle):
    check(*whole, oracle)


def test_so_are_rounded_ones_and_the_last_layers(rounded, oracle):
    check(*rounded, oracle)


def test_a_batch_yields_the_features_of_each_prompt(whole, rounded):
    for answer in (whole[0], rounded[0]):
        assert answer["largest_batch_error"] < ROUNDING[torch.bfloat16]


def test_what_the_engine_rounds_is_what_we_would_have_rounded(whole, rounded):
    """Oracle: our own rounding of the states that the same engine gave whole, of the two layers that both were asked for."""
    for ours, theirs in zip(whole[1], rounded[1], strict=True):
        ours = decode(encode(ours, fp8=True), ours.prompt, torch.device("cpu"), torch.bfloat16)
        for mine, engines in list(zip(ours.context.chunk(len(WHOLE), 1), theirs.context.chunk(len(ROUNDED), 1), strict=False))[:2]:
            assert torch.equal(mine, engines)


def test_a_shift_of_the_layers_is_named(whole, oracle):
    shifted = dataclasses.replace(whole[1][0], layer_ids=tuple(z - 1 for z in WHOLE))
    with pytest.raises(ContractError, match="output of layer 1, so the layer-id convention is off"):
        check_features(shifted, oracle)


START = 400.0  # seconds until a server that does not answer counts as hanging; another engine may start beside it
ON_CPU = "--device cpu --attention-backend torch_native --sampling-backend pytorch --mem-fraction-static 0.3 --max-total-tokens 8192"


@contextmanager
def sglang_server(command: str, port: int, folder: Path):
    """A server started by the very command that torchspec tells its user, on CPU."""
    words = [str(ENGINES["sgl"]), *shlex.split(f"{command} {ON_CPU} --port {port}")[1:]]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(words, env=environment("sgl") | {"HOME": str(folder)}, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + START
        while requests_to(port) != 200:
            assert server.poll() is None and time.monotonic() < until, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def requests_to(port: int) -> int | None:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status
    except OSError:  # not listening yet
        return None


@pytest.mark.parametrize("name", ["sgl"], indirect=True)
def test_a_running_sglang_server_is_used_and_a_plain_one_is_told_the_command_that_started_it(
    whole, target_folder, samples, oracle, tmp_path
):
    command = whole[0]["command"]
    with sglang_server(command, 30118, tmp_path) as url:
        answer, features = captured("sgl", target_folder, WHOLE, samples, tmp_path, server_url=url)
    check(answer, features, oracle)  # when the server, which never sleeps, is gone
    assert "was started with enable_return_aux_hidden_states=False" in answer["refusal"] and command in answer["refusal"]
