"""`make check`: which tests belong to a change."""

import runpy
from pathlib import Path

import pytest

belonging = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "changed_tests.py"))["belonging"]
ALWAYS = "tests/unit/test_rooms.py"


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("torchspec/nn/send.py", ["tests/unit/nn"]),
        ("torchspec/methods/dflash/model.py", ["tests/unit/methods"]),
        ("torchspec/config.py", ["tests/unit/test_config.py"]),
        ("torchspec/section.py", []),  # has no test of its own
        ("tests/unit/nn/test_layers.py", ["tests/unit/nn/test_layers.py"]),
        ("tests/unit/methods/cases.py", ["tests/unit/methods"]),
        ("docs/data.md", ["tests/unit/test_documentation.py"]),
        ("tests/faults/test_drop.py", []),
    ],
)
def test_a_change_brings_the_belonging_its_room(file, tests):
    assert belonging([file]) == sorted([*tests, ALWAYS])


def test_a_room_holds_its_files():
    assert belonging(["tests/unit/nn/test_layers.py", "torchspec/nn/send.py", "torchspec/nn/send.py"]) == ["tests/unit/nn", ALWAYS]
