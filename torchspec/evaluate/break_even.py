"""How many draft tokens pay at which concurrency: the cost of drafting and of verifying, measured once here, against what the slots accept.

With k draft tokens a step commits tau(k) = 1 + P(slot 1 accepted) + ... + P(slot k accepted) tokens and costs a verification of
k + 1 rows per sequence and a draft; plain decoding commits 1 for a forward of one row. The draft is taken to cost as much for
fewer tokens, and anchors are taken to accept alike wherever steps begin.
"""

import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch

from torchspec.inference import Pair
from torchspec.records import Features, Prompt

CONCURRENCIES = (1, 8, 32)
CONTEXT = 256  # tokens that each sequence has in the cache
REPEATS = 3


def break_even(pair: Pair, slot_rates: list[float]) -> list[dict]:
    """slot_rates: P(draft token k is accepted), k = 1..B-1, unconditional."""
    tau, rows = list(accumulate(slot_rates, initial=1.0)), []
    for concurrency in CONCURRENCIES:
        verify, draft = verify_seconds(pair, concurrency), draft_seconds(pair, concurrency)
        curve = [tau[k] * verify[0] / (verify[k] + draft) for k in range(1, len(tau))]
        best = max(range(len(curve)), key=curve.__getitem__)
        rows.append(
            {
                "concurrency": concurrency,
                "best_draft_tokens": best + 1,
                "speedup_at_best": curve[best],
                "tau_at_best": tau[best + 1],
                "tau_needed": (verify[best + 1] + draft) / verify[0],
                "curve": curve,
            }
        )
    return rows


@torch.inference_mode()
def verify_seconds(pair: Pair, concurrency: int) -> list[float]:
    """[k] target forward of k + 1 rows for each sequence, k = 0..B-1; k = 0 is plain decoding."""
    model, device = pair.target.model, pair.target.device
    cache = pair.target.new_cache()
    model(input_ids=torch.arange(CONTEXT, device=device)[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(concurrency)
    seconds = []
    for rows in range(1, pair.method.block_size + 1):
        ids = torch.arange(rows, device=device).expand(concurrency, rows)

        def forward(ids=ids) -> None:
            model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.crop(-ids.shape[1])

        seconds.append(median_seconds(forward, device))
    return seconds


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
    times = []
    for _ in range(REPEATS + 1):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
