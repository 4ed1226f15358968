"""The wheel holds every package and data file, and runs from where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    # pip makes a wheel and installs that; nothing of it is imported more than once, so that compiling it all would be in vain
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", folder / "site", ROOT], check=True, timeout=300)
    return folder / "site"


def test_every_file_of_the_package_is_in_the_wheel(installed):
    tracked = subprocess.run(["git", "ls-files", "torchspec"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    missing = [file for file in tracked if not (installed / file).is_file()]
    assert not missing and len(tracked) > 40


def test_the_installed_package_finds_its_commands_and_its_demo(installed, tmp_path):
    def python(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    code = "import torchspec, importlib.resources as r; print(torchspec.__file__)\n"
    code += "print(r.files('torchspec.demo').joinpath('train.jsonl').is_file())"
    assert python("-c", code).split() == [str(installed / "torchspec" / "__init__.py"), "True"]
    assert "demo" in python("-m", "torchspec", "--help")
