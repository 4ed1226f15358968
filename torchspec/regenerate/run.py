"""Rewrite the assistant turns of conversations with the target itself: the text that a draft must learn is the text that is served.

The rows carry the ids that the target read and wrote, so that nothing is tokenised again. A killed run goes on where it was.
"""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.console import console
from torchspec.data.dataset import PromptDataset, open_or_prepare
from torchspec.data.encode import Options
from torchspec.errors import UserError
from torchspec.files.writing import writing
from torchspec.regenerate.answers_file import AnswersFile
from torchspec.regenerate.regenerator import Conversation, Regenerator, Sampling, questions_of
from torchspec.rows.formats import Row
from torchspec.rows.sources import read_rows

__all__ = ["Regenerator", "Sampling", "on_policy_share", "regenerate", "report", "report_share"]

SHARE_SAMPLES = 32  # samples that the on-policy share is measured on
WINDOW = 32  # batches whose conversations are sorted by length together: little padding, bounded memory


@dataclass
class Counts:
    """What a run did. Reasons are counted by the part before the first ": "."""

    already_there: int = 0  # conversations of the input
    duplicates: int = 0
    answered: int = 0
    rows: int = 0  # answers
    tokens: int = 0
    stopped: int = 0
    seconds: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)  # conversations that end before their last turn
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, conversations: list[Conversation], seconds: float) -> None:
        self.seconds += seconds
        for conversation in conversations:
            if conversation.rows:
                self.answered += 1
                self.rows += len(conversation.rows)
                self.tokens += sum(len(row["response_ids"]) for row in conversation.rows)
                self.stopped += sum(row["finish"] == "stop" for row in conversation.rows)
                if conversation.ended:
                    self.ended[_kind(conversation.ended)] += 1


def regenerate(inputs: list[str], out: Path, regenerator: Regenerator, batch_size: int, limit: int | None) -> dict:
    """Adds to `out` until every conversation that can be answered is there. What cannot is listed in `out`.rejected."""
    _check_out(inputs, out)
    counts, target = Counts(), regenerator.target
    listing = out.with_name(f"{out.name}.rejected")
    columns = (
        TextColumn("regenerate"),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with (
        writing(out, "torchspec regenerate", lambda: f"{out} keeps its whole conversations, and the same command goes on there"),
        Progress(*columns, console=console) as progress,
    ):
        answers = AnswersFile(out, regenerator.header(target), target)
        with listing.open("w") as refused:
            task = progress.add_task("", total=limit)
            todo = _todo(islice(read_rows(inputs), limit), answers.done, refused, counts)
            for batch in _batches(todo, batch_size):
                started = time.perf_counter()
                _converse(regenerator, batch)
                counts.add(batch, time.perf_counter() - started)
                answers.add([(conversation.key, conversation.rows) for conversation in batch])
                for conversation in batch:
                    if not conversation.rows:
                        _refuse(conversation.where, conversation.ended, refused, counts)
                rate = counts.tokens / counts.seconds if counts.seconds else 0
                done = counts.answered + counts.already_there + counts.duplicates + counts.rejected.total()
                progress.update(task, completed=done, description=f"{rate:,.0f} tok/s")
        if not counts.rejected:
            listing.unlink()
    if not answers.done:
        reason = next(iter(counts.rejected), "the input has no rows")
        raise UserError(f"no row of {', '.join(inputs)} can be answered, the first because of this: {reason}; all are listed in {listing}")
    return vars(counts)


def _converse(regenerator: Regenerator, batch: list[Conversation]) -> None:
    try:
        regenerator.converse(batch)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the device has no memory for {len(batch)} conversations at a time; go on with a smaller --batch-size or --max-new-tokens"
        ) from error


def _check_out(inputs: list[str], out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name the .jsonl to write")
    if not_folder := next((parent for parent in out.parents if parent.is_file()), None):
        raise UserError(f"--out {out} lies below {not_folder}, which is a file; name another place")
    if any(Path(name).resolve() == out.resolve() for name in inputs):
        raise UserError(f"--out {out} is an input as well; name another file")


def _todo(rows: Iterator[Row], done: set[str], refused, counts: Counts) -> Iterator[Conversation]:
    """The conversations that `done` lacks, each once."""
    met: set[str] = set()
    for row in rows:
        problem = row.problem or _unanswerable(row)
        if problem:
            _refuse(row.where, problem, refused, counts)
            continue
        conversation = Conversation(row.where, questions_of(row.messages))
        if conversation.key in met:
            counts.duplicates += 1
        elif conversation.key in done:
            counts.already_there += 1
        else:
            yield conversation
        met.add(conversation.key)


def _batches(conversations: Iterator[Conversation], batch_size: int) -> Iterator[list[Conversation]]:
    while window := list(islice(conversations, WINDOW * batch_size)):
        window.sort(key=lambda conversation: len(str(conversation.questions)))
        for start in range(0, len(window), batch_size):
            yield window[start : start + batch_size]


def _unanswerable(row: Row) -> str | None:
    if row.messages is None:
        return "the row has token ids and no messages, so its questions are not known"
    if row.tools or any(message["role"] == "tool" or message.get("tool_calls") for message in row.messages):
        return "the row has tools, which nobody can call here; remove them or keep the row as it is"
    return None if questions_of(row.messages) else "no user turn to answer"


def _refuse(where: str, reason: str, refused, counts: Counts) -> None:
    counts.rejected[_kind(reason)] += 1
    refused.write(json.dumps({"where": where, "reason": reason}) + "\n")


def _kind(reason: str) -> str:
    return reason.partition(": ")[0]


def report(counts: dict, out: Path) -> None:
    rate = counts["tokens"] / counts["seconds"] if counts["seconds"] else 0
    duplicates = f", {counts['duplicates']} are duplicates" if counts["duplicates"] else ""
    console.print(
        f"{out}: {counts['rows']} answers written ({counts['already_there']} conversations were there{duplicates}), "
        f"{counts['tokens']:,} tokens, {rate:,.0f} tok/s; {counts['stopped']} ended by themselves, the rest at the cap"
    )
    for reason, count in counts["ended"].items():
        console.print(f"  {count} conversations end before their last turn: {reason}", markup=False)
    for reason, count in counts["rejected"].items():
        console.print(f"  rejected {count}: {reason} (listed in {out}.rejected)", markup=False)


def report_share(
    inputs: list[str], target: Path, dtype: torch.dtype, device: torch.device, thinking: bool | None, trust_remote_code: bool
) -> None:
    """Prints how much of each input's supervised text the target would have written itself."""
    model = HFCapture(CaptureSpec(target, (0,), dtype, device, trust_remote_code=trust_remote_code))
    for path in inputs:
        with tempfile.TemporaryDirectory() as scratch:
            dataset = open_or_prepare(path, Path(scratch), target, Options(thinking, trust_remote_code=trust_remote_code))
            same, total = on_policy_share(model, dataset, SHARE_SAMPLES)
        console.print(f"{path}: on-policy share {same / total:.1%} ({same} of {total} tokens are the target's own greedy choice)")


@torch.inference_mode()
def on_policy_share(target: HFCapture, dataset: PromptDataset, samples: int) -> tuple[int, int]:
    """(supervised tokens that equal the target's argmax after the true prefix, supervised tokens), over evenly spread samples."""
    same = total = 0
    count = min(samples, len(dataset))
    for i in range(count):
        prompt = dataset[i * len(dataset) // count]
        choices = target.model(input_ids=prompt.ids.to(target.device)[None], use_cache=False).logits[0].argmax(-1).cpu()  # [L]
        supervised = prompt.loss_mask[1:]
        same += int((choices[:-1] == prompt.ids[1:])[supervised].sum())
        total += int(supervised.sum())
    return same, total
