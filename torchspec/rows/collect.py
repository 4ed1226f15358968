"""Inputs -> one JSONL of clean conversations, all of them or a seeded sample: roles normalised, unusable rows counted and listed.

What comes out is text of whoever wrote it. Regenerate it with the target before training, or the draft learns another model's words.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from torchspec.errors import UserError
from torchspec.files.whole import whole
from torchspec.progress import with_progress
from torchspec.rows.conversation import BadRow, assistant_turns
from torchspec.rows.formats import Row
from torchspec.rows.language import ALL, Languages
from torchspec.rows.ledger import Ledger
from torchspec.rows.sources import check_no_input, count_lines, read_rows, resolve


@dataclass(frozen=True)
class Collected:
    out: Path
    listing: Path  # every row that was left out, with its reason
    written: int
    usable: int  # rows that the sample was drawn from
    ledger: Ledger

    def report(self, console: Console) -> None:
        console.print(f"{self.out}: {self.written} conversations of {self.usable} usable ones in {self.ledger.rows} rows", markup=False)
        for kind, reasons in (("rejected", self.ledger.rejected), ("filtered", self.ledger.filtered)):
            for reason, count in reasons.items():
                console.print(f"  {kind} {count}: {reason} (listed in {self.listing})", markup=False)


def check_arguments(out: Path, target: str | None, sample_size: int | None, held_out: str | None, languages: Sequence[str] = ()) -> None:
    """`torchspec prepare` writes conversations without a target, and tokens with one."""
    if target is None and out.suffix != ".jsonl":
        raise UserError(f"--target is missing: name the target whose tokens go into {out}, or an --out FILE.jsonl for the conversations")
    if target is not None and out.suffix == ".jsonl":
        raise UserError(f"--out {out} names a file, but with --target a folder is written; name a folder, or leave --target out")
    if held_out is not None and target is None:
        raise UserError(f"--held-out {held_out} is compared in the target's tokens: name the --target, and a folder as --out")
    if held_out is not None and not (Path(held_out) / "manifest.json").is_file():
        resolve(held_out)  # a wrong name fails here, not when everything is prepared
    if target is not None and (sample_size is not None or languages):
        asked = f"--language {languages[0]} filters" if languages else "--sample-size draws"
        raise UserError(f"{asked} conversations: write them to an --out FILE.jsonl without --target, then prepare that file")


def collect(
    inputs: list[str],
    out: Path,
    sample_size: int | None,
    seed: int,
    max_rejected: float,
    languages: Languages = ALL,
    progress: bool = True,
) -> Collected:
    """`out` changes only when the new file is complete. A sample is held in memory, a whole data set is not."""
    _check_replaceable(out, inputs)
    rows, total = read_rows(inputs), count_lines(inputs) if progress else None
    listing = out.with_name(out.name + ".rejected")
    out.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with whole(out) as partial, listing.open("w", encoding="utf-8") as refused:
        ledger = Ledger(refused)
        with (
            partial.open("w", encoding="utf-8") as file,
            closing(_usable(with_progress(rows, "reading", total, progress), ledger, languages)) as lines,
        ):
            for line in _draw(lines, sample_size, seed):
                written += file.write(line) > 0
        usable = ledger.rows - ledger.rejected.total() - ledger.filtered.total()
        ledger.check(usable, max_rejected)
    if usable == ledger.rows:
        listing.unlink()
    return Collected(out, listing, written, usable, ledger)


def _check_replaceable(out: Path, inputs: list[str]) -> None:
    """A file of ours may be made anew; somebody's own is not replaced."""
    check_no_input(out, inputs)
    if out.is_file() and out.stat().st_size:
        with out.open("rb") as file:
            first = file.readline()
        try:
            ours = json.loads(first).keys() in ({"id", "messages"}, {"id", "messages", "tools"})
        except (ValueError, AttributeError):
            ours = False
        if not ours:
            raise UserError(f"--out {out} exists and holds no conversations of `torchspec prepare`; name another file, or move this one")


def _usable(rows: Iterator[Row], ledger: Ledger, languages: Languages = ALL) -> Iterator[str]:
    seen: set[bytes] = set()
    for row in rows:
        ledger.rows += 1
        try:
            line = json.dumps(_conversation(row), ensure_ascii=False) + "\n"
        except BadRow as bad:
            ledger.reject(row.where, str(bad))
            continue
        if problem := languages.problem(row):
            ledger.filter(row.where, problem)
            continue
        key = hashlib.blake2b(line.partition('"messages"')[2].encode(), digest_size=16).digest()
        if key in seen:
            ledger.filter(row.where, "exact duplicate")
            continue
        seen.add(key)
        yield line


def _conversation(row: Row) -> dict:
    """A user's turn that an assistant answers; the id leads back to the row."""
    if row.problem:
        raise BadRow(row.problem)
    if row.messages is None:
        raise BadRow("the row holds token ids and no conversation: prepare it with --target")
    assistant_turns(row.messages)
    return {"id": row.where, "messages": row.messages, **({"tools": row.tools} if row.tools else {})}


def _draw(lines: Iterator[str], size: int | None, seed: int) -> Iterable[str]:
    """All lines, or `size` of them with equal chances, in the order of the input (reservoir sampling, algorithm R)."""
    if size is None:
        return lines
    generator, kept = random.Random(seed), []
    for position, line in enumerate(lines):
        if len(kept) < size:
            kept.append((position, line))
        elif (slot := generator.randrange(position + 1)) < size:
            kept[slot] = (position, line)
    return [line for _, line in sorted(kept)]
