"""`torchspec doctor`: everything that can be known before a run, and the run itself in small."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchspec.config import RunConfig
from torchspec.console import console
from torchspec.doctor import data, machine, target
from torchspec.doctor.finding import Finding
from torchspec.doctor.rehearsal import rehearse
from torchspec.doctor.servers import servers
from torchspec.doctor.tiny import tiny_config, write_tiny_target
from torchspec.errors import UserError
from torchspec.target.fetch import resolve_target
from torchspec.training.build import CHECKED_SAMPLES

LOG_WIDTH = 180  # of the table in a file, where nothing should be wrapped
COLOURS = {"ok": "green", "absent": "dim", "look": "yellow", "bad": "red"}


def run_doctor(config: RunConfig | None) -> bool:
    """Prints the table; true if nothing in it is red."""
    with tempfile.TemporaryDirectory() as scratch:
        findings = examine(config, Path(scratch))
    wide = console if console.is_terminal else Console(width=LOG_WIDTH, highlight=False)
    wide.print(table(findings))
    bad = sum(finding.verdict == "bad" for finding in findings)
    console.print(f"{bad} of {len(findings)} checks are red" if bad else f"{len(findings)} checks, none is red")
    return not bad


def examine(config: RunConfig | None, scratch: Path) -> list[Finding]:
    """Each check stands on those before it: where one cannot even run, its sentence is the last row."""
    findings: list[Finding] = []
    checks = _of_the_installation(scratch) if config is None else _of_a_run(config, scratch)
    try:
        for found in checks:
            findings += found
            console.print(f"  {found[0].area}: {', '.join(finding.check for finding in found)}", style="dim", markup=False)
    except (UserError, torch.OutOfMemoryError) as error:
        findings.append(Finding("stopped", "here", "later checks did not run", "bad", str(error).splitlines()[0]))
    return findings


def _of_the_installation(scratch: Path) -> Iterator[list[Finding]]:
    yield machine.installation(None)
    yield machine.devices()
    config = tiny_config(write_tiny_target(scratch / "tiny"))
    yield rehearse(config, scratch / "tiny", config.draft.block_size, scratch)


def _of_a_run(config: RunConfig, scratch: Path) -> Iterator[list[Finding]]:
    yield machine.installation(config)
    yield machine.devices()
    yield machine.number_format(config)
    yield machine.topology_of(config)
    folder = resolve_target(config.model.target_model_path)
    yield target.template(config, folder)
    sources = data.open_first_rows(config, folder, scratch)
    frozen, method = target.build(config, folder, sources[config.dataset.train_data_path])
    yield target.draft(config, frozen, method)
    yield data.rows(sources) + data.leaks(config, folder, scratch, sources)
    yield (space := target.space(config, frozen, method))
    if any(finding.verdict == "bad" for finding in space):
        raise UserError("the target is not loaded where memory or disk is missing")
    if config.inference.servers:
        rows = sources[config.dataset.train_data_path]
        yield servers(config, folder, method.layer_ids, [rows[i] for i in range(min(len(rows), CHECKED_SAMPLES))])
    yield data.on_policy(config, frozen, sources)
    yield rehearse(config, folder, method.block_size, scratch)


def table(findings: list[Finding]) -> Table:
    rows = Table("", "check", "", "found", "what to do", box=box.SIMPLE)
    for before, finding in zip([None, *findings], findings, strict=False):
        area = finding.area if before is None or before.area != finding.area else ""
        verdict = Text(finding.verdict, style=COLOURS[finding.verdict])
        rows.add_row(area, Text(finding.check), verdict, Text(finding.found), Text(finding.fix))
    return rows
