"""Inputs -> a prepared dataset: Arrow data, `manifest.json` (what was made of what) and `rejected.jsonl` (what was not).

A row that is broken is *rejected* and counts towards `max_rejected`; a sample that is sound but of no use is *filtered*.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from torchspec.data.chat import BadRow, ChatFormat, Encoded
from torchspec.data.ledger import Ledger
from torchspec.data.manifest import Manifest, tokenizer_hash, vocab_size
from torchspec.data.sources import Row, read_rows
from torchspec.errors import UserError

ROWS_PER_WRITE = 256  # bounds the memory: at 8192 tokens a row, 10 MB
FEATURES = datasets.Features(
    ids=datasets.List(datasets.Value("int32")),
    loss_mask=datasets.List(datasets.Value("bool")),
    length=datasets.Value("int32"),
    loss_tokens=datasets.Value("int32"),
    where=datasets.Value("string"),
)


def prepare(
    inputs: list[str],
    out: Path,
    target: Path,
    *,
    thinking: bool | None = None,
    last_turn_only: bool = False,
    max_length: int | None = None,
    min_loss_tokens: int = 1,
    max_rejected: float = 0.1,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Manifest:
    """Everything happens in `out`.partial; `out` changes only when the new dataset is complete."""
    chat = ChatFormat.load(target, thinking, last_turn_only, trust_remote_code)
    vocab = vocab_size(target)
    rows = read_rows(inputs)
    _check_replaceable(out)
    partial = _empty_folder(out.with_name(f"{out.name}.partial"))
    with (partial / "rejected.jsonl").open("w") as listing, _SampleWriter(partial / "raw" / "raw.arrow") as writer:
        ledger = Ledger(listing)
        for row in _with_progress(rows, progress):
            ledger.rows += 1
            try:
                samples = encode_row(row, chat, vocab)
            except BadRow as bad:
                ledger.reject(row.where, str(bad))
                continue
            writer.split_conversations += len(samples) > 1
            for sample in (_truncate(sample, max_length) for sample in samples):
                reason = _useless(sample, min_loss_tokens) or writer.add(sample, row.where)
                if reason:
                    ledger.filter(row.where, reason)
    ledger.check(writer.samples, max_rejected)
    _save(partial)
    manifest = Manifest(
        inputs=list(inputs),
        target=str(target.resolve()),
        tokenizer_hash=tokenizer_hash(target),
        template_hash=chat.template_hash,
        thinking=thinking,
        last_turn_only=last_turn_only,
        max_length=max_length,
        min_loss_tokens=min_loss_tokens,
        samples=writer.samples,
        tokens=writer.tokens,
        loss_tokens=writer.loss_tokens,
        mask_share=writer.loss_tokens / writer.tokens,
        rejected=dict(ledger.rejected),
        filtered=dict(ledger.filtered),
        split_conversations=writer.split_conversations,
        fingerprint=writer.digest.hexdigest()[:16],
    ).check()
    (partial / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    _replace(out, partial)
    return manifest


def encode_row(row: Row, chat: ChatFormat, vocab: int) -> list[Encoded]:
    if row.problem:
        raise BadRow(row.problem)
    if row.prompt_ids and row.response_ids:
        mask = [False] * len(row.prompt_ids) + [True] * len(row.response_ids)
        samples = [Encoded(row.prompt_ids + row.response_ids, mask)]
    else:
        samples = chat.encode(row.messages)
        chat.verify(samples, row.messages)
    for sample in samples:
        lowest, highest = min(sample.ids), max(sample.ids)
        if lowest < 0 or highest >= vocab:
            raise BadRow(f"token id outside the target's vocabulary: ids reach from {lowest} to {highest} of {vocab}")
    return samples


def _truncate(sample: Encoded, max_length: int | None) -> Encoded:
    return Encoded(sample.ids[:max_length], sample.loss_mask[:max_length])


def _useless(sample: Encoded, min_loss_tokens: int) -> str | None:
    loss_tokens = sum(sample.loss_mask)
    if loss_tokens == 0:
        return "truncation to max_length leaves no supervised token"
    if loss_tokens < min_loss_tokens:
        return f"shorter than min_loss_tokens: {loss_tokens} < {min_loss_tokens}"
    return "every token is supervised" if loss_tokens == len(sample.ids) else None


class _SampleWriter:
    """Writes samples to an Arrow file and keeps the sums. Remembers 16 bytes per sample to find exact duplicates."""

    def __init__(self, path: Path):
        path.parent.mkdir()
        self._arrow = ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=ROWS_PER_WRITE)
        self._seen: set[bytes] = set()
        self.digest = hashlib.sha256()
        self.samples = self.tokens = self.loss_tokens = self.split_conversations = 0

    def __enter__(self) -> "_SampleWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._arrow.finalize()

    def add(self, sample: Encoded, where: str) -> str | None:
        """The reason if the sample is left out."""
        ids, mask = np.array(sample.ids, dtype=np.int32), np.array(sample.loss_mask, dtype=bool)
        key = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
        if key in self._seen:
            return "exact duplicate"
        self._seen.add(key)
        loss_tokens = int(mask.sum())
        self._arrow.write({"ids": ids, "loss_mask": mask, "length": len(ids), "loss_tokens": loss_tokens, "where": where})
        self.digest.update(ids.tobytes() + mask.tobytes())
        self.samples += 1
        self.tokens += len(ids)
        self.loss_tokens += loss_tokens
        return None


def _with_progress(rows: Iterator[Row], visible: bool) -> Iterator[Row]:
    text = TextColumn("preparing: {task.completed} rows, {task.fields[rate]:.0f} rows/s")
    columns = (SpinnerColumn(), text, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not visible) as progress:
        task = progress.add_task("", total=None, rate=0.0)
        for row in rows:
            yield row
            progress.update(task, advance=1, rate=progress.tasks[task].speed or 0.0)


def _empty_folder(path: Path) -> Path:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def _save(partial: Path) -> None:
    """Copies the raw Arrow file into the layout that `datasets.load_from_disk` opens."""
    raw = partial / "raw"
    datasets.disable_progress_bars()
    datasets.Dataset.from_file(str(raw / "raw.arrow")).save_to_disk(partial)
    datasets.enable_progress_bars()
    shutil.rmtree(raw)


def _check_replaceable(out: Path) -> None:
    if out.exists() and not (out / "manifest.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out {out.resolve()} exists and is no prepared dataset; give another folder, this one would be deleted")


def _replace(out: Path, partial: Path) -> None:
    old = out.with_name(f"{out.name}.old")
    if out.exists():
        out.rename(old)
    partial.rename(out)
    if old.exists():
        shutil.rmtree(old)
