"""What `torchspec regenerate` adds to its engine: python benchmarks/regenerate.py TARGET DATA [CONVERSATIONS]

The first CONVERSATIONS (24) of DATA (torchspec/demo/prompts_heldout.jsonl) are answered greedily, eight at a time and at most 64 tokens
long, in two ways that take turns: `regenerate` from file to file, and the bare `generate` of Transformers over the same batches of token
ids. Medians over rounds; tokens that follow a stop token count for neither. Writes benchmarks/results/regenerate.json.
"""

import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from in_turns import in_turns

from torchspec.regenerate.run import Regenerator, Sampling, regenerate

ROUNDS, BATCH, MAX_NEW_TOKENS = 5, 8, 64
RESULTS = Path(__file__).parent / "results" / "regenerate.json"


def main(target: Path, data: str, count: int) -> None:
    regenerator = Regenerator.load(target, Sampling(MAX_NEW_TOKENS, 0.0, 0), torch.bfloat16, torch.device("cpu"), None, False)
    with tempfile.TemporaryDirectory() as scratch:
        numbers = iter(range(ROUNDS + 2))

        def whole() -> list[dict]:
            out = Path(scratch) / f"{next(numbers)}.jsonl"
            regenerate([data], out, regenerator, BATCH, count)
            return [json.loads(line) for line in out.read_text().splitlines()]

        rows = whole()  # the first round warms up, and says which batches there are
        batches = [[row["prompt_ids"] for row in rows[i : i + BATCH]] for i in range(0, len(rows), BATCH)]
        ways = {"regenerate": whole, "generate alone": lambda: [regenerator.generate(batch) for batch in batches]}
        seconds = in_turns(ways, ROUNDS)
    tokens = sum(len(row["response_ids"]) for row in rows)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "conversations": count,
        "tokens": tokens,
        "tokens_per_second": {name: tokens / statistics.median(times) for name, times in seconds.items()},
        "overhead": statistics.median(a / b - 1 for a, b in zip(seconds["regenerate"], seconds["generate alone"], strict=True)),
        "seconds": seconds,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 24)
