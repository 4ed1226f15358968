"""Inputs -> a prepared dataset: Arrow data, `manifest.json` (what was made of what) and `rejected.jsonl` (what was not).

A row that is broken is *rejected* and counts towards `max_rejected`; a sample that is sound but of no use is *filtered*.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

from torchspec.data.encode import DEFAULTS, Options, Outcome, Sample, encode_rows
from torchspec.data.manifest import Manifest, tokenizer_hash
from torchspec.errors import UserError
from torchspec.files.whole import whole
from torchspec.progress import with_progress
from torchspec.rows.files import STDIN
from torchspec.rows.ledger import Ledger
from torchspec.rows.sources import check_no_input, contents_key, count_lines, read_rows
from torchspec.target.language_config import positions, vocab_size

REJECTED = "rejected.jsonl"
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
    options: Options = DEFAULTS,
    *,
    limit: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """`out` changes only when the new dataset is complete.

    limit: only the first rows. workers: processes that encode; None is one per core.
    """
    vocab, template_hash = vocab_size(target), options.chat(target).template_hash
    most = longest(target, options.max_length)
    rows = islice((row for row in read_rows(inputs) if options.split is None or options.split.has(row)), limit)
    total = limit or (count_lines(inputs) if progress else None)
    check_no_input(out, inputs)
    _check_replaceable(out)
    with whole(out) as partial:
        partial.mkdir(parents=True)
        outcomes = with_progress(encode_rows(rows, target, options, vocab, workers), "preparing", total, progress)
        ledger, writer = _write(outcomes, partial, most, options.min_loss_tokens)
        if options.split and options.split.held_out and not ledger.rows:
            raise UserError(f"dataset.eval_share={options.split.share:g} holds out no prompt of {', '.join(inputs)}; raise it")
        try:
            ledger.check(writer.samples, options.max_rejected)
        except UserError as error:
            listing = (partial / REJECTED).replace(out.with_name(f"{out.name}.rejected"))
            raise UserError(f"{error}; all are listed in {listing}") from error
        _save(partial)
        manifest = Manifest(
            inputs=list(inputs),
            target=str(target.resolve()),
            tokenizer_hash=tokenizer_hash(target),
            template_hash=template_hash,
            thinking=options.thinking,
            last_turn_only=options.last_turn_only,
            max_length=most,
            min_loss_tokens=options.min_loss_tokens,
            samples=writer.samples,
            tokens=writer.tokens,
            loss_tokens=writer.loss_tokens,
            mask_share=writer.loss_tokens / writer.tokens,
            rejected=dict(ledger.rejected),
            filtered=dict(ledger.filtered),
            truncated=writer.truncated,
            split_conversations=writer.split_conversations,
            fingerprint=writer.digest.hexdigest()[:16],
            known_by=[writer.digest.hexdigest()[:16], *_contents(inputs, options)],
        ).check()
        (partial / "manifest.json").write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def _contents(inputs: list[str], options: Options) -> list[str]:
    """Keys of the inputs that nothing else is made of: not of those whose other side is trained on, nor of a pipe, which is gone."""
    shared = options.split is not None and options.split.held_out
    return [] if shared else [contents_key(name) for name in inputs if Path(name) != STDIN]


def _write(outcomes: Iterable[Outcome], partial: Path, most: int | None, min_loss_tokens: int) -> tuple[Ledger, "_SampleWriter"]:
    """What can be used into raw/, what cannot into the listing. most: tokens of a sample."""
    with (partial / REJECTED).open("w") as listing, _SampleWriter(partial / "raw" / "raw.arrow") as writer:
        ledger = Ledger(listing)
        for outcome in outcomes:
            ledger.rows += 1
            if outcome.rejected:
                ledger.reject(outcome.where, outcome.rejected)
            writer.split_conversations += len(outcome.samples) > 1
            for sample in outcome.samples:
                cut = sample.cut(most)
                reason = _useless(cut, min_loss_tokens) or writer.add(cut, outcome.where)
                if reason:
                    ledger.filter(outcome.where, reason)
                elif len(cut.ids) < len(sample.ids):
                    writer.truncated += 1
    return ledger, writer


def longest(target: Path, max_length: int | None) -> int | None:
    """The most tokens of a sample: the target reads no further than its positions."""
    return min(filter(None, (max_length, positions(target))), default=None)


def _useless(sample: Sample, min_loss_tokens: int) -> str | None:
    loss_tokens = int(sample.loss_mask.sum())
    if loss_tokens == 0:
        return "truncation to max_length leaves no supervised token"
    if loss_tokens < min_loss_tokens:
        return f"shorter than min_loss_tokens: {loss_tokens} < {min_loss_tokens}"
    return "every token is supervised" if loss_tokens == len(sample.ids) else None


class _SampleWriter:
    """Writes samples to an Arrow file and keeps the sums. Remembers a hash of every sample (100 bytes each) to find duplicates."""

    def __init__(self, path: Path):
        path.parent.mkdir()
        self._arrow = ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=ROWS_PER_WRITE)
        self._seen: set[bytes] = set()
        self.digest = hashlib.sha256()
        self.samples = self.tokens = self.loss_tokens = self.split_conversations = self.truncated = 0

    def __enter__(self) -> "_SampleWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._arrow.finalize()

    def add(self, sample: Sample, where: str) -> str | None:
        """The reason if the sample is left out."""
        ids, mask = sample.ids, sample.loss_mask
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
