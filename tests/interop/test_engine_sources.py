"""What docs/targets.md says of an engine is what the sources of the installed one say."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_installed_engine_reads_as_the_page_says(engine):
    read = runpy.run_path(str(ROOT / "scripts" / "read_engines.py"))
    root = next((ROOT / ".interop" / engine).glob(f"lib/python*/site-packages/{engine}"))
    assert read[engine](root) == json.loads((ROOT / "docs" / "engines.json").read_text())[engine], "run python -m scripts.read_engines"
