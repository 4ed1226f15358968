"""How many draft tokens pay at which concurrency: steps with 0 to B-1 of them timed in turns on this machine, in many short rounds.

A step of k draft tokens is a verification of k + 1 rows per sequence and a draft; plain decoding is a forward of one row. The draft is
taken to cost as much for fewer tokens, and anchors are taken to accept alike wherever steps begin.
"""

import time
from collections.abc import Callable

import torch

from torchspec.acceptance.draft_tokens import draft_tokens_that_pay
from torchspec.decode.pair import Pair
from torchspec.records import Features, Prompt

CONCURRENCIES = (1, 8, 32)
CONTEXT = 256  # tokens that each sequence has in the cache
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 8, 20, 5.0  # at each concurrency


def break_even(pair: Pair, slot_rates: list[float]) -> list[dict]:
    """slot_rates: P(draft token k is accepted), k = 1..B-1, unconditional."""
    return [{"concurrency": n, **draft_tokens_that_pay(slot_rates, timed_rounds(pair, n))} for n in CONCURRENCIES]


def timed_rounds(pair: Pair, concurrency: int) -> list[list[float]]:
    """[round][k] seconds of a step with k draft tokens, k = 0..B-1. A first round is not counted; every other one goes backwards, so that a
    machine that slows down or recovers favours no size.
    """
    forward, draft, sizes = forwards(pair, concurrency), drafts(pair, concurrency), range(1, pair.method.block_size + 1)

    def timed_round(order: range) -> list[float]:
        taken, drafting = {rows: forward(rows) for rows in order}, draft()
        return [taken[1]] + [taken[rows] + drafting for rows in sizes[1:]]

    timed_round(sizes)
    rounds, until = [], time.perf_counter() + SECONDS
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() < until):
        rounds.append(timed_round(sizes if len(rounds) % 2 == 0 else sizes[::-1]))
    return rounds


@torch.inference_mode()
def forwards(pair: Pair, concurrency: int) -> Callable[[int], float]:
    """Rows of each sequence -> seconds of the target's forward over them, always from the same cache.

    Of a target with states only the forward is timed: servers keep the states of every row, and need not read anything again.
    """
    model, device = pair.target.model, pair.target.device
    cache = pair.target.new_cache()
    model(input_ids=torch.arange(CONTEXT, device=device)[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.reorder_cache(torch.zeros(concurrency, dtype=torch.int64, device=device))  # every sequence is the first

    @torch.inference_mode()
    def forward(rows: int) -> float:
        before, ids = pair.target.states(cache), torch.arange(rows, device=device).expand(concurrency, rows)
        taken = seconds(lambda: model(input_ids=ids, past_key_values=cache, use_cache=True), device)
        pair.target.forget(cache, before, rows)
        return taken

    return forward


@torch.inference_mode()
def drafts(pair: Pair, concurrency: int) -> Callable[[], float]:
    """Seconds of one proposal for every sequence; what a long context adds to the draft's attention is left out."""
    method, device = pair.method, pair.target.device
    length = method.block_size + concurrency
    ids = torch.arange(length)
    context = pair.target.features(ids[None])[0]
    features = Features(Prompt(0, ids.to(device), torch.ones(length, dtype=torch.bool)), context, pair.target.layer_ids, "")
    anchors = torch.arange(method.block_size, length, device=device)

    @torch.inference_mode()
    def draft() -> float:
        return seconds(lambda: method.propose(pair.model, features, anchors), device)

    return draft


def seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
