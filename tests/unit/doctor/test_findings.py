"""Verdicts of single checks. Oracles: pyproject.toml and constraints.txt for versions, tables written out for the rest."""

import re
import tomllib
from pathlib import Path

import pytest

from torchspec.capture.base import EXTRAS
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
    for engine in EXTRAS.values():
        script = ROOT / "tests" / "interop" / f"{engine}_env.sh"
        pinned[engine] = re.search(r"^version=([\d.]+)", script.read_text(), re.MULTILINE)[1]
    assert set(EXTRAS.values()) <= set(machine.OPTIONAL)
    for name, (low, newest) in (machine.CORE | machine.OPTIONAL).items():
        assert low == lowest[name] and pinned[name].startswith(newest), name


@pytest.mark.parametrize(
    ("found", "needed", "verdict"),
    [
        ("2.10.1", True, "bad"), ("2.11", True, "ok"), ("2.13.7+cu130", True, "ok"), ("2.14.0.dev1", True, "look"), ("3.0", False, "look"),
        (None, True, "bad"), (None, False, "ok"),
    ],
)  # fmt: skip
def test_a_version_is_judged_by_the_tested_range(found, needed, verdict):
    finding = machine.judge("torch", found, ("2.11", "2.13"), needed)
    assert finding.verdict == verdict and bool(finding.fix) == (verdict != "ok")


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
