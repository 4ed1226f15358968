"""One answer, written with and without the draft: its tokens, and when each of them stood."""

import statistics

from torchspec.chat.format import ChatFormat
from torchspec.decode.pair import Pair
from torchspec.decode.sequence import Answer, token_texts
from torchspec.evaluate.decoded import Decoded

MOST_TOKENS = 160  # what a reader takes in; of a longer answer the beginning is shown


def picture(pair: Pair, decoded: list[Decoded]) -> dict | None:
    """None where nothing was decoded alone: the tokens of a batch have no times of their own."""
    timed = [d for d in decoded if len(d.plain.times) > 1 and len(d.speculative.times) > 1]
    if not timed:
        return None
    tokenizer = ChatFormat.load(pair.folder, None, False, pair.target.spec.trust_remote_code).tokenizer
    chosen = usual(timed)
    return {
        "prompt": tokenizer.decode(chosen.prompt.question, skip_special_tokens=True).strip(),
        "outcome": chosen.outcome,
        "whole": max(len(chosen.plain.ids), len(chosen.speculative.ids)) <= MOST_TOKENS,
        "plain": _beginning(tokenizer, chosen.plain),
        "draft": _beginning(tokenizer, chosen.speculative),
    }


def usual(decoded: list[Decoded]) -> Decoded:
    """The one whose speed-up is nearest to the median of all; among those that are token-identical, where there are any."""
    median = statistics.median(d.speedup for d in decoded)
    return min([d for d in decoded if d.outcome == "identical"] or decoded, key=lambda d: abs(d.speedup - median))


def _beginning(tokenizer, answer: Answer) -> dict:
    ids = answer.ids[:MOST_TOKENS]
    sources = ["draft" if drafted else "target" for drafted in answer.from_draft] or ["plain"] * len(ids)
    pieces = [list(pair) for pair in zip(token_texts(tokenizer, ids), sources, strict=False)]
    return {"pieces": pieces, "seconds": answer.times[:MOST_TOKENS]}
