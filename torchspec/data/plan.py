"""Which samples form which micro-batch, as a pure function of (lengths, seed, epochs, limits, ranks). No arrival order, no state."""

from dataclasses import dataclass

import numpy as np

from torchspec.errors import UserError


@dataclass(frozen=True)
class MicroBatch:
    epoch: int
    indices: tuple[int, ...]


def plan_micro_batches(lengths: np.ndarray, seed: int, num_epochs: int, samples: int, max_tokens: int) -> list[MicroBatch]:
    """Every sample once per epoch in a seeded order, cut into micro-batches of at most `samples` documents and `max_tokens` tokens."""
    if len(lengths) and lengths.max() > max_tokens:
        raise UserError(
            f"training.max_batch_tokens={max_tokens} is below the longest sample ({lengths.max()} tokens); "
            "raise it or set dataset.max_length"
        )
    batches = []
    for epoch in range(num_epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(lengths))
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
