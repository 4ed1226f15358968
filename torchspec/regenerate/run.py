"""Rewrite the assistant turns of conversations with the target itself: the text that a draft must learn is the text that is served.

The rows carry the ids that the target read and wrote, so that nothing is tokenised again. A killed run goes on where it was.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from torchspec.console import console
from torchspec.errors import UserError
from torchspec.files.writing import writing
from torchspec.progress import PlainLines, live_line
from torchspec.regenerate.answers_file import AnswersFile
from torchspec.regenerate.conversation import Conversation, conversations_of
from torchspec.regenerate.drop import KEEP_ALL
from torchspec.regenerate.report import Counts, kind
from torchspec.regenerate.turns import Answering
from torchspec.rows.formats import Row
from torchspec.rows.language import ALL, Languages
from torchspec.rows.sources import check_no_input, count_lines, read_rows


@dataclass(frozen=True)
class Wanted:
    """Which turns of the input are answered."""

    limit: int | None = None  # rows of the input
    answers: int = 1  # of each prompt
    last_turn_only: bool = False
    languages: Languages = ALL


def regenerate(inputs: list[str], out: Path, answering: Answering, wanted: Wanted) -> Counts:
    """Adds to `out` until every conversation that can be answered is there. What cannot is listed in `out`.rejected; with
    `drop`, conversations whose first answer is dropped are kept apart in `out`.dropped, so that they are not answered again."""
    check_out(inputs, out)
    counts, listing = Counts(), out.with_name(f"{out.name}.rejected")
    with (
        writing(out, "torchspec regenerate", lambda: f"{out} keeps its whole conversations, and the same command goes on there"),
        live_line("regenerate", console) as progress,
    ):
        files = Files(out, answering)
        with listing.open("w") as refused:
            there, lines = min(filter(None, (wanted.limit, count_lines(inputs))), default=None), PlainLines(console)
            total = there and there * wanted.answers
            task = progress.add_task("", total=total)
            todo, began = _todo(read_rows(inputs), wanted, files.done, refused, counts), time.perf_counter()
            for finished in answering.converse(todo):
                began, seconds = time.perf_counter(), time.perf_counter() - began
                counts.add(finished, seconds)
                files.add(finished)
                for conversation in finished:
                    if not conversation.rows and not conversation.dropped:
                        _refuse(conversation.where, conversation.ended, refused, counts)
                progress.update(task, completed=counts.seen, description=counts.line)
                lines.tell(f"regenerate: {counts.seen:,} conversations, {counts.line}", counts.seen, total)
        if not counts.rejected:
            listing.unlink()
    if files.done and not files.answers.done:
        reasons = ", ".join(counts.dropped) or "an earlier run"
        raise UserError(f"every answer is dropped ({reasons}) and kept in {files.dropped.path} alone; change what is dropped")
    if not files.done:
        reason = next(iter(counts.rejected), "the input has no rows")
        raise UserError(f"no row of {', '.join(inputs)} can be answered, the first because of this: {reason}; all are listed in {listing}")
    return counts


class Files:
    """The answers, and beside them with `drop` the conversations whose first answer is dropped."""

    def __init__(self, out: Path, answering: Answering):
        header, target = answering.turns.header(answering.made_with), answering.turns.target
        self.answers = AnswersFile(out, header, target)
        drops = answering.turns.drop != KEEP_ALL
        self.dropped = AnswersFile(out.with_name(f"{out.name}.dropped"), header, target) if drops else None

    @property
    def done(self) -> set[str]:
        return self.answers.done | (self.dropped.done if self.dropped else set())

    def add(self, finished: list[Conversation]) -> None:
        self.answers.add([(conversation.key, conversation.rows) for conversation in finished])
        if self.dropped:
            whole = [c for c in finished if c.dropped and not c.rows]
            self.dropped.add([(c.key, [c.dropped | {"last": True, "ended": c.ended}]) for c in whole])


def check_out(inputs: list[str], out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name the .jsonl to write")
    if not_folder := next((parent for parent in out.parents if parent.is_file()), None):
        raise UserError(f"--out {out} lies below {not_folder}, which is a file; name another place")
    check_no_input(out, inputs)


def _todo(rows: Iterator[Row], wanted: Wanted, done: set[str], refused: TextIO, counts: Counts) -> Iterator[Conversation]:
    """The conversations that `done` lacks, each once."""
    met: set[str] = set()
    for row in islice(rows, wanted.limit):
        problem = row.problem or ("the row has token ids and no messages, so its questions are not known" if row.messages is None else None)
        problem = problem or wanted.languages.problem(row)
        conversations = [] if problem else conversations_of(row, wanted.answers, wanted.last_turn_only)
        if not conversations:
            _refuse(row.where, problem or "no user turn to answer", refused, counts)
            counts.seen += wanted.answers
        for conversation in conversations:
            if conversation.key in met:
                counts.duplicates += 1
                counts.seen += 1
            elif conversation.key in done:
                counts.already_there += 1
                counts.seen += 1
            else:
                yield conversation
            met.add(conversation.key)


def _refuse(where: str, reason: str, refused: TextIO, counts: Counts) -> None:
    counts.rejected[kind(reason)] += 1
    refused.write(json.dumps({"where": where, "reason": reason}) + "\n")
