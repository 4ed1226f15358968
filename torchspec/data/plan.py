"""Which samples form which micro-batch, as a pure function of (lengths, mix, seed, epochs, limits, ranks). No arrival order, no state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchspec.errors import UserError


@dataclass(frozen=True)
class Part:
    """One source of a mix."""

    samples: int
    passes: float = 1.0  # over the source per epoch; 0.5 takes one half in one epoch and the other half in the next


@dataclass(frozen=True)
class MicroBatch:
    epoch: int
    indices: tuple[int, ...]


def plan_micro_batches(
    lengths: np.ndarray,
    seed: int,
    num_epochs: int,
    samples: int,
    max_tokens: int,
    *,
    shuffle: bool = True,
    parts: Sequence[Part] | None = None,
) -> list[MicroBatch]:
    """The samples of every epoch in order, cut into micro-batches of at most `samples` documents and `max_tokens` tokens.

    lengths [samples of all parts, one part after the other]; without parts every sample comes once per epoch.
    """
    if len(lengths) and lengths.max() > max_tokens:
        raise UserError(
            f"training.max_batch_tokens={max_tokens} is below the longest sample ({lengths.max()} tokens); "
            "raise it or set dataset.max_length"
        )
    parts = parts or (Part(len(lengths)),)
    batches = []
    for epoch in range(num_epochs):
        order = epoch_order(parts, seed, epoch, shuffle)
        current, tokens = [], 0
        for index in order.tolist():
            if current and (len(current) == samples or tokens + lengths[index] > max_tokens):
                batches.append(MicroBatch(epoch, tuple(current)))
                current, tokens = [], 0
            current.append(index)
            tokens += int(lengths[index])
        if current:
            batches.append(MicroBatch(epoch, tuple(current)))
    return batches


def epoch_order(parts: Sequence[Part], seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Indices of one epoch's samples. Every part is an endless row of passes over its samples, and an epoch takes the next `passes` of
    them: over a whole run no sample of a part comes more than once oftener than another."""
    chosen, first = [], 0
    for number, part in enumerate(parts):
        start, end = (round(e * part.passes * part.samples) for e in (epoch, epoch + 1))
        taken = np.arange(start, end)
        if shuffle and part.samples:
            taken = np.sort(_shuffled_passes(part.samples, (seed, number), start, end))
        chosen.append(first + taken % max(1, part.samples))
        first += part.samples
    order = np.concatenate(chosen)
    return np.random.default_rng((seed, epoch)).permutation(order) if shuffle else order


def _shuffled_passes(samples: int, seed: tuple[int, int], start: int, end: int) -> np.ndarray:
    """Positions [start, end) of an endless row of shuffled passes over range(samples)."""
    first, last = start // samples, -(-end // samples)
    passes = [np.random.default_rng((*seed, number)).permutation(samples) for number in range(first, last)]
    return np.concatenate(passes or [np.arange(0)])[start - first * samples : end - first * samples]


def epoch_ends(batches: list[MicroBatch], per_step: int) -> frozenset[int]:
    """Numbers of steps done after which an epoch is complete: the next step begins in a later one. per_step: micro-batches of all ranks."""
    begins = [batch.epoch for batch in batches[::per_step]]
    return frozenset(step for step in range(1, len(begins)) if begins[step] > begins[step - 1])


def rank_plan(batches: list[MicroBatch], rank: int, world_size: int, accumulation: int, max_steps: int | None) -> list[MicroBatch]:
    """The rank's own micro-batches, `accumulation` per optimizer step. All ranks get equally many; an incomplete last step is left out."""
    steps = len(batches) // (world_size * accumulation)
    if max_steps is not None:
        steps = min(steps, max_steps)
    if steps == 0:
        raise UserError(
            f"{len(batches)} micro-batches do not fill one step of {world_size} ranks x {accumulation} accumulation; "
            "lower training.draft_accumulation_steps or micro_batch_size, or give more data"
        )
    return batches[rank : steps * world_size * accumulation : world_size]
