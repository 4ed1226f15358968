"""Real decoding, plain and speculative, one batch of prompts after another: speed-up, acceptance, and the proof of equal tokens."""

import statistics
from dataclasses import asdict, dataclass

from torch import Tensor

from torchspec.acceptance.interval import median_interval
from torchspec.acceptance.sampling import Sampler
from torchspec.acceptance.walk import Acceptance
from torchspec.chat.format import ChatFormat
from torchspec.console import console
from torchspec.decode.batch import plain_together, speculative_together
from torchspec.decode.pair import Pair
from torchspec.decode.sequence import Answer, Difference, first_difference, plain_decode, speculative_decode, stop_ids, token_texts
from torchspec.records import Prompt

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Decoded:
    """One prompt, decoded twice."""

    prompt: Prompt
    plain: Answer
    speculative: Answer
    difference: Difference | None
    sampled: bool
    leads: bool = True  # the longest answer of its batch, whose rate stands for the batch's

    @property
    def outcome(self) -> str:
        if self.sampled:  # two draws from one distribution need not agree
            return "sampled"
        return "identical" if self.difference is None else "tie" if self.difference.tie else "mismatch"

    @property
    def speedup(self) -> float:
        """Of the rates, since two answers that part at a tie differ in length."""
        return self.speculative.tokens_per_second / self.plain.tokens_per_second

    def to_json(self) -> dict:
        return {
            "plain": asdict(self.plain),
            "speculative": asdict(self.speculative),
            "difference": self.difference and asdict(self.difference),
            "leads": self.leads,
        }

    @classmethod
    def from_json(cls, prompt: Prompt, row: dict, sampled: bool) -> "Decoded":
        difference = row["difference"] and Difference(**row["difference"])
        return cls(prompt, Answer(**row["plain"]), Answer(**row["speculative"]), difference, sampled, row["leads"])


class Decoder:
    """Decodes prompts; the first forwards of each shape are slow, so the first prompts are run before anything is timed."""

    def __init__(self, pair: Pair, max_new_tokens: int, temperature: float, seed: int, least_survival: float):
        self.pair, self.max_new_tokens, self.temperature, self.seed = pair, max_new_tokens, temperature, seed
        self.least_survival = least_survival
        self.stop, self.warm = stop_ids(pair.target), False

    def decode(self, prompts: list[Prompt]) -> list[Decoded]:
        """The prompts together: plain and speculative, one right after the other, so that both see the same machine."""
        asked = [prompt.question for prompt in prompts]
        if not self.warm:
            self._run(asked, WARM_UP_TOKENS, set())
            self.warm = True
        answers = list(zip(*self._run(asked, self.max_new_tokens, self.stop), strict=True))
        leader = max(range(len(asked)), key=lambda i: min(len(answer.ids) for answer in answers[i]))
        decoded = [self._compared(*row, leads=i == leader) for i, row in enumerate(zip(prompts, asked, answers, strict=True))]
        plain, speculative = answers[leader]
        console.print(
            f"decode {', '.join(str(prompt.index) for prompt in prompts)}: τ {acceptance(self.pair, decoded).tau:.2f}, "
            f"{plain.tokens_per_second:.1f} -> {speculative.tokens_per_second:.1f} tok/s, {', '.join(d.outcome for d in decoded)}"
        )
        return decoded

    def _compared(self, prompt: Prompt, ids: Tensor, answers: tuple[Answer, Answer], leads: bool) -> Decoded:
        plain, speculative = answers
        sampled = self.temperature > 0
        difference = None if sampled else first_difference(self.pair.target, ids, plain.ids, speculative.ids)
        return Decoded(prompt, plain, speculative, difference, sampled, leads)

    def _run(self, asked: list[Tensor], max_new_tokens: int, stop: set[int]) -> tuple[list[Answer], list[Answer]]:
        pair, target = self.pair, self.pair.target
        plain, speculative = ([Sampler(self.temperature, self.seed, target.device) for _ in asked] for _ in range(2))
        drafters = [pair.drafter(self.least_survival) for _ in asked]
        if len(asked) > 1:
            reference = plain_together(target, asked, max_new_tokens, stop, plain)
            return reference, speculative_together(target, drafters, asked, max_new_tokens, stop, speculative)
        reference = plain_decode(target, asked[0], max_new_tokens, stop, plain[0])
        return [reference], [speculative_decode(target, drafters[0], asked[0], max_new_tokens, stop, speculative[0])]


def acceptance(pair: Pair, decoded: list[Decoded]) -> Acceptance:
    total = Acceptance(pair.method.block_size)
    for d in decoded:
        total.add_answer(d.speculative.accepted, len(d.speculative.ids), d.speculative.drafted)
    return total


def decode_results(pair: Pair, decoded: list[Decoded], offline: Acceptance) -> dict | None:
    """Counts of all prompts, rates and speed-ups of the batches; None where nothing was decoded. offline: of the same prompts."""
    if not decoded:
        return None
    batches = [d for d in decoded if d.leads]
    speedups, walked = [d.speedup for d in batches], offline.to_json()
    return {
        **acceptance(pair, decoded).to_json(),
        "draft_tokens": sum(sum(d.speculative.drafted) for d in decoded),
        "prompts": len(decoded),
        "offline_tau": walked["tau"],
        "offline_tau_interval": walked["tau_interval"],
        "speedup": statistics.median(speedups),
        "speedup_interval": median_interval(speedups),
        "plain_tokens_per_second": statistics.median(d.plain.tokens_per_second for d in batches),
        "speculative_tokens_per_second": statistics.median(d.speculative.tokens_per_second for d in batches),
        "identical": sum(d.outcome == "identical" for d in decoded),
        "ties": sum(d.outcome == "tie" for d in decoded),
        "mismatches": sum(d.outcome == "mismatch" for d in decoded),
    }


def examples(pair: Pair, decoded: list[Decoded]) -> list[dict]:
    tokenizer = ChatFormat.load(pair.folder, None, False, pair.target.spec.trust_remote_code).tokenizer
    return [_example(pair, d, tokenizer) for d in decoded]


def _example(pair: Pair, decoded: Decoded, tokenizer) -> dict:
    answer = decoded.speculative
    return {
        "prompt": tokenizer.decode(decoded.prompt.question, skip_special_tokens=True).strip(),
        "pieces": [
            [text, "draft" if drafted else "target"]
            for text, drafted in zip(token_texts(tokenizer, answer.ids), answer.from_draft, strict=True)
        ],
        "tau": acceptance(pair, [decoded]).tau,
        "outcome": decoded.outcome,
        "plain_tokens_per_second": decoded.plain.tokens_per_second,
        "speculative_tokens_per_second": answer.tokens_per_second,
    }
