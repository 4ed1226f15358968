"""Offline acceptance prompt by prompt, kept so that an interrupted evaluation goes on, and by the length of the context."""

from collections import defaultdict

from torchspec.acceptance.walk import Acceptance
from torchspec.decode.offline import accepted_per_step, evaluate_expected
from torchspec.decode.pair import Pair
from torchspec.evaluate.confidence import counted
from torchspec.records import Features, Prompt

FIRST_SPAN = 128  # tokens of context; each further span is as long as all before it


def measure_offline(pair: Pair, prompt: Prompt, temperature: float) -> dict:
    """Counts of one conversation, and where it is decoded greedily the walk of every answer: [context before it, length, accepted]; and
    what the draft says of its own drafts.
    """
    total, walks, confidence = Acceptance(pair.method.block_size), [], None
    if temperature > 0:
        total = evaluate_expected(pair.method, pair.model, pair.target, [prompt], temperature)
    else:
        features = pair.target.capture(prompt)
        here = Prompt(prompt.index, prompt.ids.to(features.context.device), prompt.loss_mask)
        on_device = Features(here, features.context, features.layer_ids, features.producer)
        starts = [start for start, end in prompt.spans() if end - start > 1]
        for start, (accepted, length) in zip(starts, accepted_per_step(pair.method, pair.model, on_device), strict=True):
            total.add_answer(accepted, length)
            walks.append([start, length, accepted])
        confidence = counted(pair, on_device) if pair.method.confident else None
    return {"counts": vars(total), "walks": walks, "confidence": confidence}


def total_of(block_size: int, rows: list[dict]) -> Acceptance:
    total = Acceptance(block_size)
    for row in rows:
        one = Acceptance(block_size)
        vars(one).update(row["counts"])
        total.add(one)
    return total


def by_context(rows: list[dict]) -> list[dict]:
    """Tau of the steps that begin with 0 to 127 tokens of context, 128 to 255, 256 to 511, ..."""
    steps, tokens = defaultdict(int), defaultdict(int)
    for start, length, accepted in (walk for row in rows for walk in row["walks"]):
        position, end = start, start + length - 1
        for count in accepted:
            committed = min(count + 1, end - position)
            span = _span(position + 1)
            steps[span], tokens[span] = steps[span] + 1, tokens[span] + committed
            position += committed
    return [{"from": a, "to": b, "tau": tokens[a, b] / steps[a, b], "steps": steps[a, b]} for a, b in sorted(steps)]


def _span(context: int) -> tuple[int, int]:
    end = FIRST_SPAN
    while context >= end:
        end *= 2
    return (0 if end == FIRST_SPAN else end // 2), end
