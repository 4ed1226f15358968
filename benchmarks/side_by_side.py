"""Drafts of one target side by side: python benchmarks/side_by_side.py TARGET DATA PROMPTS DRAFT [DRAFT ...]

Offline tau on all conversations of DATA (text that the target wrote), then PROMPTS of them decoded plainly and with every draft, one
right after the other, so that all see the same machine. Passes per step are counted by hooks on the draft's first layer, not assumed.
Prints one JSON line per draft. bfloat16; at most 256 new tokens.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from torchspec.acceptance.sampling import Sampler
from torchspec.acceptance.walk import Acceptance
from torchspec.data.dataset import open_or_prepare
from torchspec.decode.offline import evaluate_offline
from torchspec.decode.pair import Pair, load_pair
from torchspec.decode.sequence import Answer, plain_decode, speculative_decode, stop_ids

MAX_NEW_TOKENS, WARM_UP = 256, 16


class Passes:
    """How often the draft's first layer runs, and the seconds that proposals take."""

    def __init__(self, pair: Pair):
        layers = dict(pair.model.named_modules())
        layer = layers["layers.0"] if "layers.0" in layers else layers["midlayer"]
        layer.register_forward_hook(self._count)
        self.count, self.proposals, self.seconds = 0, 0, 0.0
        self.drafter = pair.method.drafter(pair.model)
        self.block_size, self.reset, self.extend = self.drafter.block_size, self.drafter.reset, self.drafter.extend

    def _count(self, *_) -> None:
        self.count += 1

    def propose(self, last_token: int, sampler: Sampler):
        started, self.proposals = time.perf_counter(), self.proposals + 1
        proposal = self.drafter.propose(last_token, sampler)
        self.seconds += time.perf_counter() - started
        return proposal


def main(target: str, data: str, prompts: int, drafts: list[Path]) -> None:
    pairs = [load_pair(draft, target, "bfloat16", "cpu", False) for draft in drafts]
    drafters = [Passes(pair) for pair in pairs]
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_or_prepare(data, Path(scratch), pairs[0].folder)
        texts = [dataset[i] for i in range(len(dataset))]
    stop, answers = stop_ids(pairs[0].target), [[] for _ in pairs]
    for number, text in enumerate([texts[0], *(texts[i * len(texts) // prompts] for i in range(prompts))]):
        ids, most = text.question, MAX_NEW_TOKENS if number else WARM_UP
        plain = plain_decode(pairs[0].target, ids, most, stop)
        for pair, drafter, rows in zip(pairs, drafters, answers, strict=True):
            answer = speculative_decode(pair.target, drafter, ids, most, stop)
            if number:
                rows.append((plain, answer))
            else:
                drafter.count = drafter.proposals = drafter.seconds = 0
    for draft, pair, drafter, rows in zip(drafts, pairs, drafters, answers, strict=True):
        passes = drafter.count / drafter.proposals
        offline = evaluate_offline(pair.method, pair.model, pair.target, texts)
        print(json.dumps({"draft": str(draft), "passes_per_step": passes, **summary(pair, drafter, rows), "offline": offline.to_json()}))


def summary(pair: Pair, drafter: Passes, rows: list[tuple[Answer, Answer]]) -> dict:
    decoded = Acceptance(pair.method.block_size)
    for _, answer in rows:
        decoded.add_answer(answer.accepted, len(answer.ids))
    return {
        "draft_milliseconds": 1000 * drafter.seconds / drafter.proposals,
        "step_milliseconds": 1000 * statistics.median(a.seconds / len(a.accepted) for _, a in rows if a.accepted),
        "plain_tokens_per_second": statistics.median(plain.tokens_per_second for plain, _ in rows),
        "tokens_per_second": statistics.median(answer.tokens_per_second for _, answer in rows),
        "speedup": statistics.median(answer.tokens_per_second / plain.tokens_per_second for plain, answer in rows),
        "decoded_tau": decoded.tau,
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
