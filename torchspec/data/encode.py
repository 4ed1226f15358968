"""Rows -> samples, in order, here or in processes: the result depends on the rows alone.

    rows --chunks--> [process 0] [process 1] ...  --in order--> outcomes

At most two chunks per process are under way, so the memory does not grow with the input.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from torchspec.chat.format import ChatFormat
from torchspec.chat.turns import Encoded, TurnText
from torchspec.data.config import MIN_LOSS_TOKENS
from torchspec.data.manifest import tokenizer_hash
from torchspec.data.split import Split
from torchspec.errors import UserError
from torchspec.rows.conversation import BadRow
from torchspec.rows.formats import Row
from torchspec.rows.truth import check_ids

CHUNK = 256  # rows that travel to a process at a time
CHUNK_CHARACTERS = 2**20  # or fewer rows, if they are long
ROWS_ALONE = 4096  # encoded here first: a small file is done before a process has imported its libraries (5 s)
MOST_WORKERS = 16  # beyond that the parent, which parses JSON and writes, is the limit


@dataclass(frozen=True)
class Options:
    """How conversations become samples; recorded in the manifest."""

    thinking: bool | None = None  # handed to the chat template; None leaves the template's own default
    last_turn_only: bool = False
    max_length: int | None = None  # tokens; longer samples are cut
    min_loss_tokens: int = MIN_LOSS_TOKENS
    max_rejected: float = 0.1  # share of unusable rows above which preparing stops
    trust_remote_code: bool = False
    split: Split | None = None  # rows of one side alone

    def chat(self, target: Path) -> ChatFormat:
        return ChatFormat.load(target, self.thinking, self.last_turn_only, self.trust_remote_code)


DEFAULTS = Options()


@dataclass(frozen=True)
class Sample:
    ids: np.ndarray  # [L] int32
    loss_mask: np.ndarray  # [L] bool

    def cut(self, length: int | None) -> "Sample":
        return Sample(self.ids[:length], self.loss_mask[:length])


@dataclass(frozen=True)
class Outcome:
    """What became of one row: its samples, or why it has none."""

    where: str
    samples: tuple[Sample, ...] = ()
    rejected: str | None = None


@dataclass(frozen=True)
class Encoder:
    chat: ChatFormat
    vocab: int
    tokenizer_hash: str

    def __call__(self, rows: list[Row]) -> list[Outcome]:
        """Renders all rows first, so that one call of the tokenizer takes their texts together."""
        rendered = [self._rendered(row) for row in rows]
        self.chat.tokenize(text for texts in rendered if isinstance(texts, list) for text in texts)
        return [self._outcome(row, texts) for row, texts in zip(rows, rendered, strict=True)]

    def _rendered(self, row: Row) -> list[TurnText] | BadRow:
        try:
            return rendered(row, self.chat)
        except BadRow as bad:
            return bad

    def _outcome(self, row: Row, texts: list[TurnText] | BadRow) -> Outcome:
        if isinstance(texts, BadRow):
            return Outcome(row.where, rejected=str(texts))
        try:
            encoded = encoded_row(row, texts, self.chat, self.vocab, self.tokenizer_hash)
        except BadRow as bad:
            return Outcome(row.where, rejected=str(bad))
        return Outcome(row.where, tuple(Sample(np.array(e.ids, np.int32), np.array(e.loss_mask, bool)) for e in encoded))


def has_ids(row: Row) -> bool:
    return bool(row.prompt_ids and row.response_ids)


def rendered(row: Row, chat: ChatFormat) -> list[TurnText]:
    if row.problem:
        raise BadRow(row.problem)
    return [] if has_ids(row) else chat.texts(row.messages, row.tools)


def encoded_row(row: Row, texts: list[TurnText], chat: ChatFormat, vocab: int, tokenizer_hash: str) -> list[Encoded]:
    if has_ids(row):
        mask = [False] * len(row.prompt_ids) + [True] * len(row.response_ids)
        encoded = [Encoded(row.prompt_ids + row.response_ids, mask)]
    else:
        encoded = chat.encode(texts)
    for sample in encoded:
        lowest, highest = min(sample.ids), max(sample.ids)
        if lowest < 0 or highest >= vocab:
            raise BadRow(f"token id outside the target's vocabulary: ids reach from {lowest} to {highest} of {vocab}")
    if has_ids(row):  # after the vocabulary: no tokenizer decodes what it has not
        check_ids(row, chat.tokenizer, tokenizer_hash)
    return encoded


def encode_rows(rows: Iterator[Row], target: Path, options: Options, vocab: int, workers: int | None) -> Iterator[Outcome]:
    """Outcomes in the order of the rows. workers: processes; None is one per core, started only when there are many rows."""
    encoder = Encoder(options.chat(target), vocab, tokenizer_hash(target))
    for chunk in _chunks(rows if workers == 1 else islice(rows, ROWS_ALONE)):
        yield from encoder(chunk)
    following = next(rows, None)
    if following is not None:
        workers = workers or min(os.cpu_count() or 1, MOST_WORKERS)
        yield from _in_processes(_chunks(chain([following], rows)), target, options, vocab, workers)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk, characters = [], 0
    for row in rows:
        chunk.append(row)
        characters += len(repr(row))
        if len(chunk) == CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _in_processes(chunks: Iterator[list[Row]], target: Path, options: Options, vocab: int, workers: int) -> Iterator[Outcome]:
    spawn = multiprocessing.get_context("spawn")  # a fork would copy this process's threads and CUDA context
    pool = ProcessPoolExecutor(workers, spawn, _start, (target, options, vocab))
    pending = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_encode_chunk, chunk))
            if len(pending) > 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"one of {workers} preparing processes died, most likely killed for memory; prepare with fewer: --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder  # of a process of the pool


def _start(target: Path, options: Options, vocab: int) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the process that asks ends this one, without a traceback
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes themselves use every core
    _encoder = Encoder(options.chat(target), vocab, tokenizer_hash(target))


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """One that is killed closes no pool, and its processes would wait for ever."""
    parent.join()
    os._exit(1)


def _encode_chunk(chunk: list[Row]) -> list[Outcome]:
    return _encoder(chunk)
