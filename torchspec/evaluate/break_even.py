"""How many draft tokens pay at which concurrency: the cost of drafting and of verifying, measured once here, against what the slots accept.

With k draft tokens a step commits tau(k) = 1 + P(slot 1 accepted) + ... + P(slot k accepted) tokens and costs a verification of
k + 1 rows per sequence and a draft; plain decoding commits 1 for a forward of one row. The draft is taken to cost as much for
fewer tokens, and anchors are taken to accept alike wherever steps begin. Forwards of all sizes are timed in turns, so that a slow
moment of the machine meets all of them, and more rows are taken to cost no less than fewer: break-even is never below 1.
"""

import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch

from torchspec.decode.pair import Pair
from torchspec.records import Features, Prompt

CONCURRENCIES = (1, 8, 32)
CONTEXT = 256  # tokens that each sequence has in the cache
REPEATS = 5


def break_even(pair: Pair, slot_rates: list[float]) -> list[dict]:
    """slot_rates: P(draft token k is accepted), k = 1..B-1, unconditional."""
    tau, rows = list(accumulate(slot_rates, initial=1.0)), []
    for concurrency in CONCURRENCIES:
        rounds, draft = verify_seconds(pair, concurrency), draft_seconds(pair, concurrency)
        verify, noise = costs(rounds), spread([forward[0] for forward in rounds])
        curve = [tau[k] * verify[0] / (verify[k] + draft) for k in range(1, len(tau))]
        best = max(range(len(curve)), key=curve.__getitem__)
        needed = (verify[best + 1] + draft) / verify[0]
        rows.append(
            {
                "concurrency": concurrency,
                "best_draft_tokens": best + 1,
                "speedup_at_best": curve[best],
                "tau_at_best": tau[best + 1],
                "tau_needed": needed,
                "noise": noise,
                "measurable": noise < needed - 1,  # else one forward differs from the next by more than a draft costs
                "curve": curve,
            }
        )
    return rows


@torch.inference_mode()
def verify_seconds(pair: Pair, concurrency: int) -> list[list[float]]:
    """[round][k] target forward of k + 1 rows for each sequence, k = 0..B-1; k = 0 is plain decoding. A first round is not counted.

    Of a target with states only the forward is timed: servers keep the states of every row, and need not read anything again.
    """
    model, device = pair.target.model, pair.target.device
    cache = pair.target.new_cache()
    model(input_ids=torch.arange(CONTEXT, device=device)[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.reorder_cache(torch.zeros(concurrency, dtype=torch.int64, device=device))  # every sequence is the first

    def forward(rows: int) -> float:
        before, ids = pair.target.states(cache), torch.arange(rows, device=device).expand(concurrency, rows)
        taken = seconds(lambda: model(input_ids=ids, past_key_values=cache, use_cache=True), device)
        pair.target.forget(cache, before, rows)
        return taken

    sizes = range(1, pair.method.block_size + 1)
    return [[forward(rows) for rows in sizes] for _ in range(REPEATS + 1)][1:]


def costs(rounds: list[list[float]]) -> list[float]:
    """[k] median of the rounds, and no less than that of fewer rows."""
    return list(accumulate((statistics.median(times) for times in zip(*rounds, strict=True)), max))


def spread(times: list[float]) -> float:
    """Half the distance of the quartiles, relative to the median: what a measured ratio may be off by."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle


@torch.inference_mode()
def draft_seconds(pair: Pair, concurrency: int) -> float:
    """One proposal for every sequence; what a long context adds to the draft's attention is left out."""
    method, device = pair.method, pair.target.device
    length = method.block_size + concurrency
    ids = torch.arange(length)
    context = pair.target.features(ids[None])[0]
    features = Features(Prompt(0, ids.to(device), torch.ones(length, dtype=torch.bool)), context, pair.target.layer_ids, "")
    anchors = torch.arange(method.block_size, length, device=device)
    return median_seconds(lambda: method.propose(pair.model, features, anchors), device)


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """After one run that is not counted."""
    return statistics.median([seconds(run, device) for _ in range(REPEATS + 1)][1:])


def seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
