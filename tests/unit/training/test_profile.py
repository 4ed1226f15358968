"""The trace holds the optimizer steps of its window and no others; a window that cannot be is refused."""

import json
from pathlib import Path

import pytest
import torch

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.training.profile import Profiler, check_window

CPU = torch.device("cpu")


def config(folder: Path, *steps: int) -> RunConfig:
    return RunConfig(
        output_dir=str(folder), model={"target_model_path": "t"}, dataset={"train_data_path": "d"}, tracking={"profile_steps": steps}
    )


def trained(config: RunConfig, done: int, last: int, is_main: bool = True) -> list[Path]:
    """Steps of a model whose size is the number of the step: the trace tells them apart. -> traces"""
    with Profiler(config, done, CPU, is_main) as profiler:
        for step in range(done + 1, last + 1):
            weight = torch.ones(step, requires_grad=True)
            optimizer = torch.optim.AdamW([weight])
            torch.sin(weight).sum().backward()
            optimizer.step()
            profiler.step()
    return sorted(Path(config.output_dir).glob("profile/*"))


@pytest.mark.parametrize(("window", "done"), [((3, 5), 0), ((1, 2), 0), ((6, 8), 4), ((5, 6), 4)])
def test_a_trace_holds_the_steps_of_its_window_and_no_others(window, done, tmp_path, capsys):
    (trace,) = trained(config(tmp_path, *window), done, 8)
    assert trace.name == f"steps-{window[0]}-{window[1]}.json" and str(trace) in capsys.readouterr().out
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    first, last = (step - 1 - done for step in window)
    assert sorted({name for name in names if name.startswith("ProfilerStep#")}) == [f"ProfilerStep#{i}" for i in range(first, last + 1)]
    assert sum(name.startswith("Optimizer.step#") for name in names) == last - first + 1 == names.count("aten::sin")


@pytest.mark.parametrize(("done", "is_main"), [(3, True), (7, True), (0, False)])
def test_a_start_within_or_behind_the_window_and_other_ranks_record_nothing(done, is_main, tmp_path):
    assert trained(config(tmp_path, 3, 5), done, 8, is_main) == []


def test_a_window_behind_the_end_is_refused_before_the_run(tmp_path):
    check_window(config(tmp_path, 3, 5), 5)
    with pytest.raises(UserError, match=r"tracking.profile_steps=\[3, 6\] ends behind the run's last step, 5"):
        check_window(config(tmp_path, 3, 6), 5)


def test_a_window_must_ascend(tmp_path):
    with pytest.raises(ValueError, match=r"profile_steps=\[5, 5\] must ascend"):
        config(tmp_path, 5, 5)
