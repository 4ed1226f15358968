"""One draft in a real server: the same prompts without and with it, at several concurrencies.

What the server accepts is compared with our own walk over the very text that it wrote: more than ALARM apart, and the draft that
was trained is not the draft that is served. The walk is exact at every temperature: servers propose the draft's first choices,
d_1, d_2, ..., also where they sample the text. Such a draft is a point mass, accepted with probability p(d_k) and replaced by
another token otherwise, so that it was accepted exactly where the sampled text holds d_k.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from torchspec.capture.base import Capture
from torchspec.console import console
from torchspec.decode.offline import evaluate_offline
from torchspec.decode.pair import Pair
from torchspec.decode.sequence import first_difference
from torchspec.errors import UserError
from torchspec.files.kept import Kept
from torchspec.methods.base import Method, check_served
from torchspec.methods.registry import METHODS, method_of
from torchspec.records import Prompt
from torchspec.serve.client import rates
from torchspec.serve.options import Serving
from torchspec.serve.side import Asked, Measured, Served, Side

ALARM = 0.03  # relative distance of two taus that rounding does not explain
LAW = "servers propose the draft's first choices at every temperature; one is accepted where the text holds it"


def measure_served(pair: Pair, asked: Asked, concurrencies: list[int], serving: Serving, kept: Kept, logs: Path) -> dict:
    """The `served` section of results.json. Groups that an earlier run has measured are not asked again."""
    check_served(serving.engine, pair.method)
    possible = [c for c in concurrencies if c <= len(asked.prompts)]
    if not possible:
        raise UserError(f"--concurrency {concurrencies[0]} needs as many prompts, there are {len(asked.prompts)}; give more or lower it")
    for concurrency in sorted(set(concurrencies) - set(possible)):
        console.print(f"concurrency {concurrency} is left out: there are only {len(asked.prompts)} prompts")
    served = served_by(pair.method, pair.draft, pair.folder, pair.target.model.dtype)
    with resting(pair):
        plain, drafted = (Side(served, asked, serving, with_draft, logs).ask(possible, kept) for with_draft in (False, True))
    rows = [_row(concurrency, plain[concurrency], drafted[concurrency]) for concurrency in possible]
    without, answers = (answers_of(side[possible[0]]) for side in (plain, drafted))
    own = own_tau(pair.method, pair.model, pair.target, asked, answers)
    return {
        "engine": serving.engine,
        "version": drafted[possible[0]][0].version,
        "law": LAW,
        "prompts": len(asked.prompts),
        "by_concurrency": rows,
        **against_own(serving.engine, rows[0]["tau"], own, asked.temperature),
        **_compared(pair, asked, without, answers),
    }


def served_by(method: Method, draft: Path, target: Path, dtype: torch.dtype) -> Served:
    name = method_of(method.config.to_dict())
    return Served(target, draft, METHODS[name].served_as or name, method.block_size - 1, str(dtype).removeprefix("torch."))


def answers_of(side: list[Measured]) -> list[list[int]]:
    return [reply.ids for measured in side for reply in measured.group.replies]


def own_tau(method: Method, model: Callable, capture: Capture, asked: Asked, answers: list[list[int]]) -> float:
    """Our own walk over the text that a server wrote, greedily or not."""
    texts = []
    for prompt, answer in zip(asked.prompts, answers, strict=True):
        ids = torch.cat((prompt.question, torch.tensor(answer)))
        texts.append(Prompt(prompt.index, ids, torch.arange(len(ids)) >= len(ids) - len(answer)))
    return evaluate_offline(method, model, capture, texts).tau


def acceptance(drafted: list[Measured]) -> dict:
    """Tokens committed per target forward, of which the engine's own counters tell how many there were.

    1 + accepted drafts per forward would be more: engines also count drafts that they accept beyond the end of an answer.
    """
    steps = sum(measured.steps.steps for measured in drafted)
    accepted = [sum(counts) for counts in zip(*(measured.steps.accepted for measured in drafted), strict=True)]
    if steps == 0:
        raise UserError("the server with the draft counted no speculative step; start it with the draft and with its metrics on")
    committed = sum(len(ids) - 1 for ids in answers_of(drafted))  # an answer's first token comes from the prefill
    return {"tau": committed / steps, "slot_acceptance": [count / steps for count in accepted], "steps": steps}


def against_own(engine: str, served: float, own: float, temperature: float) -> dict:
    """The gap between two taus of one text, with one sentence where the server accepts other drafts than we do."""
    gap = served / own - 1
    sampling = "; or the server was told to sample its drafts, which is another law" if temperature > 0 else ""
    sentence = (
        f"{engine} accepts τ {served:.3f} where our own walk over the text that it wrote gives {own:.3f} ({gap:+.1%}, "
        f"at most {ALARM:.0%} is rounding): the served draft is not the trained one; compare its config.json and the engine's log{sampling}"
    )
    return {"own_tau": own, "gap": gap, "alarm": sentence if abs(gap) > ALARM else None}


@contextmanager
def resting(pair: Pair) -> Iterator[None]:
    """The target waits in host memory while servers need the device's."""
    device = pair.target.device
    if device.type == "cpu":
        yield
        return
    pair.target.model.to("cpu")
    torch.cuda.empty_cache()
    yield
    pair.target.model.to(device)


def _row(concurrency: int, plain: list[Measured], drafted: list[Measured]) -> dict:
    without, with_draft = (rates([measured.group for measured in side]) for side in (plain, drafted))
    speedup = with_draft["tokens_per_second"] / without["tokens_per_second"]
    return {"concurrency": concurrency, "plain": without, "draft": with_draft, "speedup": speedup, **acceptance(drafted)}


def _compared(pair: Pair, asked: Asked, plain: list[list[int]], drafted: list[list[int]]) -> dict:
    """How many answers are the same without and with the draft, at the lowest concurrency; sampled ones need not be."""
    if asked.temperature > 0:
        return {"of": 0, "identical": 0, "ties": 0, "mismatches": 0}
    differences = [first_difference(pair.target, p.question, a, b) for p, a, b in zip(asked.prompts, plain, drafted, strict=True)]
    ties = sum(d is not None and d.tie for d in differences)
    identical = sum(d is None for d in differences)
    return {"of": len(differences), "identical": identical, "ties": ties, "mismatches": len(differences) - identical - ties}
