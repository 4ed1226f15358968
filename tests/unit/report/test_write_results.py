"""The demo's table in benchmarks/RESULTS.md holds the numbers of its folder, and nothing else of the page changes."""

import importlib.util
from pathlib import Path

from tests.unit.report.test_report import full_results, metrics

FILE = Path(__file__).parents[3] / "benchmarks" / "write_results.py"
SPECIFICATION = importlib.util.spec_from_file_location("write_results", FILE)
write_results = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(write_results)


def table() -> str:
    """The demo trains and evaluates, so that its rows of metrics carry seconds and its results a config."""
    results = full_results()
    results["config"]["draft"] = {"method": "eagle3", "num_anchors": 96}
    return write_results.demo_table(results, [row | {"seconds": 360.0} for row in metrics()])


def test_the_table_holds_the_numbers_of_the_folder():
    for row in (
        "| made | 2026-11-29 12:20 UTC, commit 3be6fbfcdb, torchspec 0.1.0, x86_64 CPU, 2 threads |",
        "| training | 200 steps in 6.0 minutes, capture and evaluation included |",
        "| held-out τ at step 100 / 200 | **1.61** / 1.57 |",
        "| τ of the exported folder | 1.92 [1.85, 1.99], 1,942 tokens in 1,013 target forwards |",
        "| accepted by slot 1..3 | 39% 18% 5% |",
        "| τ of the 3 decoded answers | 1.74; offline 1.76 |",
        "lossless: 0 of 3 answers differ beyond a rounding tie. Plain: 30.2 tok/s |",
        "| draft tokens that pay, 1 at a time | 2 draft tokens are the best number (between 1 and 3): predicted 1.32× [1.27, 1.36]",
    ):
        assert row in table(), row


def test_only_what_stands_between_the_marks_is_written():
    page = write_results.PAGE.read_text()
    written = write_results.between(page, "demo", table())
    before, after = page.split("<!-- demo -->")[0], page.split("<!-- end of demo -->")[1]
    assert written.startswith(before) and written.endswith(after) and table() in written
    assert write_results.between(written, "demo", table()) == written
