"""Held-out prompts that stand in the training data: tau on them is not that of new text.

    prompt      what is the capital of france and of ...   words without case, blanks and signs (data/words.py)
    13-grams   |-------- g0 --------|
                    |-------- g1 --------|                 hashes of the held-out text are kept, the training text streams past them

A prompt leaks if the same words are a training prompt, or if training prompts hold at least half of its 13-grams. Those of the frame, a
template's own words or a system prompt, are in many prompts and count for neither side. Memory goes with the held-out text, and with a
bounded part of that: where it has more than MOST grams, those whose hash is a multiple of a number stand for all, on both sides.
"""

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from torchspec.data.dataset import PromptDataset, open_or_prepare
from torchspec.data.encode import Options
from torchspec.data.words import GRAM, Spelling, prompts

SHARE = 0.5  # of a prompt's grams
FRAME = 20  # training prompts with the same gram: above that it is nobody's question
MOST = 2**22  # grams of the held-out text that are kept, some 100 MB
LISTED = 5


@dataclass(frozen=True)
class Leak:
    train: list[str]
    held_out: list[str]
    samples: int  # training samples that were looked through
    prompts: int  # held-out ones
    duplicates: int  # word for word
    overlapping: int  # others, by SHARE of their grams
    every: int  # one gram in so many was compared
    rows: list[tuple[str, str]]  # the first of them: held-out row, training row

    @property
    def count(self) -> int:
        return self.duplicates + self.overlapping

    def counts(self) -> dict[str, int]:
        """What travels with a draft, which may be published: no file and no row."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int)}

    def sentence(self) -> str:
        files = f"{', '.join(self.held_out)} against {self.samples:,} samples of {', '.join(self.train)}"
        sampled = f"; one {GRAM}-gram in {self.every} was compared" if self.every > 1 else ""
        if not self.count:
            return f"no leak among {self.prompts:,} held-out prompts: {files}{sampled}"
        rows = ", ".join(f"{theirs} is in {ours}" for theirs, ours in self.rows)
        return (
            f"{self.count:,} of {self.prompts:,} held-out prompts stand in the training data, {self.duplicates:,} word for word and "
            f"{self.overlapping:,} by {SHARE:.0%} or more of their {GRAM}-grams: {files}{sampled}; {rows}"
            f"{', ...' if self.count > len(self.rows) else ''}; take them out of one side, tau on them is not that of new text"
        )


def leak_into(folder: Path, held_out: str, target: Path, options: Options) -> Leak:
    """Of a held-out source, prepared for the moment, into a prepared folder."""
    with tempfile.TemporaryDirectory() as scratch:
        prepared = open_or_prepare(held_out, Path(scratch), target, options)
        return find_leak(PromptDataset(folder), prepared, target, options.trust_remote_code)


def find_leak(train: PromptDataset, held_out: PromptDataset, target: Path, trust_remote_code: bool = False) -> Leak:
    spelling = Spelling.of(target, trust_remote_code)
    sought = _Sought(held_out, spelling)
    before = 0
    for whole, owners, grams in prompts(train, spelling, sought.every):
        sought.look(before, whole, owners, grams)
        before += len(whole)
    duplicates, overlapping = sought.leaks(max(1, min(FRAME, len(train) // 2)))
    listed = sorted([*duplicates, *overlapping])[:LISTED]
    rows = [(held_out.where(i), train.where(sought.source(i))) for i in listed]
    return Leak(
        train.manifest.inputs, held_out.manifest.inputs, len(train), len(held_out), len(duplicates), len(overlapping), sought.every, rows
    )


class _Sought:
    """What the held-out prompts hold, and which training sample had it first."""

    def __init__(self, held_out: PromptDataset, spelling: Spelling):
        most = held_out.manifest.tokens - held_out.manifest.loss_tokens
        self.every = -(-most // MOST) or 1
        parts = list(prompts(held_out, spelling, self.every))
        before = np.cumsum([0] + [len(whole) for whole, _, _ in parts])
        self.owners = np.concatenate([owners + first for (_, owners, _), first in zip(parts, before[:-1], strict=True)])  # [G] prompts
        self.whole = _Table(np.concatenate([whole for whole, _, _ in parts]))
        self.grams = _Table(np.concatenate([grams for _, _, grams in parts]))

    def look(self, before: int, whole: np.ndarray, owners: np.ndarray, grams: np.ndarray) -> None:
        """before: training samples in front of these."""
        self.whole.look(whole, before + np.arange(len(whole)))
        self.grams.look(grams, before + owners)

    def leaks(self, frame: int) -> tuple[set[int], set[int]]:
        """Held-out prompts that are training prompts, and others that overlap. frame: most samples that may share a gram."""
        found, counted = self.grams.samples > 0, self.grams.samples <= frame
        found, counted = (found & counted)[self.grams.entry], counted[self.grams.entry]
        prompts = len(self.whole.entry)
        total, hits = (np.bincount(self.owners[chosen], minlength=prompts) for chosen in (counted, found))
        duplicates = set(np.flatnonzero((self.whole.samples > 0)[self.whole.entry] & (self.whole.hashes != 0)[self.whole.entry]).tolist())
        return duplicates, set(np.flatnonzero((total > 0) & (hits >= SHARE * total)).tolist()) - duplicates

    def source(self, prompt: int) -> int:
        """The training sample that holds most of a prompt that leaks."""
        if self.whole.samples[self.whole.entry[prompt]]:
            return int(self.whole.first[self.whole.entry[prompt]])
        first = self.grams.first[self.grams.entry[self.owners == prompt]]
        return Counter(first[first >= 0].tolist()).most_common(1)[0][0]


class _Table:
    """Hashes, each with the number of samples that hold it and the first of these."""

    def __init__(self, hashes: np.ndarray):
        self.hashes, self.entry = np.unique(hashes, return_inverse=True)  # [H], [len(hashes)] where each stands
        self.samples, self.first = np.zeros(len(self.hashes), np.int64), np.full(len(self.hashes), -1)

    def look(self, hashes: np.ndarray, samples: np.ndarray) -> None:
        """In the order of the samples."""
        if not len(self.hashes):
            return
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        hit = self.hashes[places] == hashes
        pairs = np.unique(np.stack((places[hit], samples[hit])), axis=1)  # a sample counts once, however often it repeats itself
        entries, first, counts = np.unique(pairs[0], return_index=True, return_counts=True)
        self.samples[entries] += counts
        self.first[entries] = np.where(self.first[entries] < 0, pairs[1][first], self.first[entries])
