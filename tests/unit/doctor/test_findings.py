"""Verdicts of single checks. Oracles: pyproject.toml and constraints.txt for versions, tables written out for the rest."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from torchspec.capture.registry import EXTRAS
from torchspec.config import RunConfig
from torchspec.doctor import machine
from torchspec.doctor.data import LEAST_SHARE, _share
from torchspec.doctor.target import thinking_mode

ROOT = Path(__file__).parents[3]


def test_the_lowest_versions_are_those_of_the_package_and_the_newest_those_of_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    lowest = {m[1]: m[2] for m in (re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", line) for line in asked) if m}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for engine in EXTRAS:
        script = ROOT / "tests" / "interop" / f"{engine}_env.sh"
        pinned[engine] = re.search(r"^version=([\d.]+)", script.read_text(), re.MULTILINE)[1]
    assert set(EXTRAS) <= set(machine.OPTIONAL)
    for name, (low, newest) in (machine.CORE | machine.OPTIONAL).items():
        assert low == lowest[name] and pinned[name].startswith(newest), name


@pytest.mark.parametrize(
    ("found", "needed", "verdict"),
    [
        ("2.10.1", True, "bad"), ("2.11", True, "ok"), ("2.13.7+cu130", True, "ok"), ("2.14.0.dev1", True, "look"), ("3.0", False, "look"),
        (None, True, "bad"), (None, False, "absent"),
    ],
)  # fmt: skip
def test_a_version_is_judged_by_the_tested_range(found, needed, verdict):
    finding = machine.judge("torch", found, ("2.11", "2.13"), "pip install torch" if needed else None)
    assert finding.verdict == verdict and bool(finding.fix) == (verdict in ("bad", "look"))


def test_a_release_that_was_read_and_not_run_is_said_to_be():
    assert machine.judge("vllm", "0.33.0", machine.OPTIONAL["vllm"], None).fix.startswith("tested up to 0.32, 0.33 was read: ")
    old = machine.judge("vllm", "0.28.0", machine.OPTIONAL["vllm"], None)
    assert (old.verdict, old.fix) == ("bad", "0.29 is the oldest that works: pip install --upgrade 'vllm>=0.29'")


def test_an_engine_of_another_distribution_is_found(tmp_path, monkeypatch):
    info = tmp_path / "some_engine_cpu-1.2.3.dist-info"
    info.mkdir()
    (tmp_path / "some_engine").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-engine-cpu\nVersion: 1.2.3\n")
    (info / "top_level.txt").write_text("some_engine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert machine._installed("some_engine") == machine._installed("some-engine-cpu") == "1.2.3"
    assert machine._installed("no_such_engine") is None


def test_what_a_run_does_not_need_is_absent_and_what_it_needs_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "_installed", lambda name: None if name in machine.OPTIONAL else machine.CORE[name][1])
    values = {"output_dir": "o", "model": {"target_model_path": "t"}, "dataset": {"train_data_path": "d"}}
    config = RunConfig(**values, inference={"inference_engine_type": "vllm"})
    for run, bad in ((None, set()), (config, {"vllm"})):
        found = {finding.check: finding.verdict for finding in machine.installation(run)}
        assert {name: found[name] for name in machine.OPTIONAL} == {n: "bad" if n in bad else "absent" for n in machine.OPTIONAL}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("instructions", [(), ("avx512_bf16",), ("amx_bf16",)])
def test_a_cpu_that_only_emulates_bfloat16_is_told(monkeypatch, dtype, instructions):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {n: n in instructions for n in ("avx512_bf16", "amx_bf16")} | {"architecture": "x86_64"}
    )
    config = RunConfig(output_dir="o", model={"target_model_path": "t", "dtype": dtype, "device": "cpu"}, dataset={"train_data_path": "d"})
    (finding,) = machine.number_format(config)
    assert finding.verdict == ("look" if dtype == "bfloat16" and not instructions else "ok")


@pytest.mark.parametrize(
    ("switchable", "mode", "verdict"),
    [(True, None, "look"), (True, False, "ok"), (True, True, "ok"), (False, None, "ok"), (False, False, "look"), (False, True, "look")],
)
def test_the_thinking_mode_is_to_be_set_where_the_template_has_one(switchable, mode, verdict):
    assert thinking_mode(switchable, mode).verdict == verdict


def test_another_models_words_are_to_be_looked_at():
    assert [_share("a.jsonl", same, 100).verdict for same in (int(100 * LEAST_SHARE) - 1, int(100 * LEAST_SHARE))] == ["look", "ok"]


def test_space_that_is_missing_is_red(tmp_path):
    config = RunConfig(
        output_dir=str(tmp_path / "not" / "yet"), model={"target_model_path": "t", "device": "cpu"}, dataset={"train_data_path": "d"}
    )
    assert [f.verdict for f in machine.enough_space(config, 1, 1)] == ["ok", "ok"]
    assert [(f.verdict, str(tmp_path) in f.check) for f in machine.enough_space(config, 2**60, 2**60)] == [("bad", False), ("bad", True)]
