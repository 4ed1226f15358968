"""A run that captures with servers: its weights are those of one process, and its doctor says which server fits. The servers are small
ones that run the real target."""

from pathlib import Path

import pytest
import torch

from tests.tiny import recipe, timeless_metrics, write_chats
from tests.unit.capture.tiny_server import TinyServer
from tests.unit.tiny import write_target
from torchspec.capture import pool
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.capture.outbox import Delivery
from torchspec.config import RunConfig, load_config
from torchspec.doctor.servers import servers
from torchspec.launch import measure
from torchspec.launch.plan import plan_of
from torchspec.launch.run import launch
from torchspec.records import Prompt
from torchspec.training import checkpoints
from torchspec.training.tensors import read_weights

LAYERS = (1, 3)


@pytest.fixture
def serve(small_folder, tmp_path):
    started, oracle = [], HFCapture(CaptureSpec(small_folder, LAYERS, torch.float32))

    def start(model: Path = small_folder) -> TinyServer:
        started.append(TinyServer(oracle, Delivery(str(tmp_path / f"server-{len(started)}"), list(LAYERS), False, True), str(model)))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def run(folder: Path, target: Path, name: str, *overrides: str) -> RunConfig:
    train, held_out = write_chats(folder / "train.jsonl", 12), write_chats(folder / "heldout.jsonl", 2, first=50)
    file = recipe(folder / "run.yaml", target, train, held_out, micro_batch_size=1, max_steps=8, prefetch_depth=3)
    options = ["draft.target_layer_ids=[1,3]", f"output_dir={folder / name}", *overrides]
    return load_config(str(file), options)


def asked(*started: TinyServer) -> tuple[str, str]:
    return "inference.inference_engine_type=sglang", f"inference.server_url=[{','.join(server.url for server in started)}]"


def test_servers_of_which_one_dies_train_the_weights_of_one_process_bitwise(serve, small_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pool, "FIRST_REST", 0.001)  # so that it fails twice, and is named, in a run of a second
    alone = run(tmp_path, small_folder, "alone")
    launch(alone)
    dies, lives = serve(), serve()
    dies.answers_until = 7  # four at the start, three of the run's
    served = run(tmp_path, small_folder, "served", *asked(dies, lives))
    launch(served)
    assert len(dies.asked) == 7 and f"{dies.url} is down" in capsys.readouterr().out.replace("\n", " ")
    ours, theirs = (read_weights(checkpoints.latest(config.checkpoints)) for config in (served, alone))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless_metrics(Path(served.output_dir)) == timeless_metrics(Path(alone.output_dir))


def test_what_is_kept_in_memory_is_asked_for_once(serve, small_folder, tmp_path):
    server = serve()
    options = ("inference.cache_gib=0.1", "training.num_epochs=3", "training.max_steps=36")
    launch(run(tmp_path, small_folder, "kept", *asked(server), *options))
    assert len(server.asked) == 4 + 12 + 2  # the check's, each sample once in three epochs, the held-out ones


def test_the_plan_asks_the_servers_and_counts_them_beside_the_ranks(serve, small_folder, tmp_path, monkeypatch, capsys):
    """No SGLang is installed here, so an engine of the plan's own could not even start."""
    for seconds in ("CAPTURE_SECONDS", "TRAIN_SECONDS", "EVALUATE_SECONDS"):
        monkeypatch.setattr(measure, seconds, 0.1)
    first, second = serve(), serve()
    config = run(tmp_path, small_folder, "plan", *asked(first, second), "training.num_ranks=2")
    predicted = measure.measure_plan(config, price=None)
    assert first.asked and second.asked
    assert predicted.run == pytest.approx(max(predicted.capture, predicted.train / 2) + predicted.evaluate / 2)
    said = " ".join(capsys.readouterr().out.split())
    assert f"2 server(s) capture as fast as {predicted.train / predicted.capture:.1f} ranks train" in said
    plan = plan_of(config)
    assert "2 trainer ranks (FULL_SHARD), each asks 2 running sglang server(s)" in plan.lines["topology"]
    assert "; from the servers, 512 bytes per token" in plan.lines["topology"]  # two layers of width 64 in float32
    assert plan.numbers["memory"]["target"] == 0  # it is not in the trainer's process


def test_the_doctor_has_a_row_for_each_server_with_what_is_wrong_with_it(serve, small_folder, tmp_path):
    fits, gone, other = serve(), serve(), serve(model=write_target(tmp_path / "other"))
    gone.stop()
    config = run(tmp_path, small_folder, "doctor", *asked(fits, gone, other))
    prompts = [Prompt(i, torch.arange(100, 130) + i, torch.arange(30) > 5) for i in range(2)]
    rows = servers(config, small_folder, LAYERS, prompts)
    assert [(row.check, row.verdict) for row in rows] == [(fits.url, "ok"), (gone.url, "bad"), (other.url, "bad")]
    assert "layers [1, 3], this target by its contents; 30 tokens are Transformers' own" in rows[0].found
    assert "does not answer" in rows[1].fix and "same files of the target" in rows[2].fix
