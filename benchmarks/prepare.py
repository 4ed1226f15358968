"""Rows per second and memory of `torchspec prepare`: python benchmarks/prepare.py TARGET ROWS [WORKERS [WORDS]]

Generates ROWS conversations whose turns have 2 to WORDS words (40), no two alike, prepares them, and prints one JSON line. Beside it,
in the same run, what `tokenizers` alone takes to encode the rendered conversations in batches on all cores: no preparation can be faster.
(Ours renders and tokenizes every prompt by itself as well, since that is what a server sees.) Memory is the largest size seen, sampled
five times a second: what is the parent's own (not the mapped pages of the Arrow file), and what is resident in it and in the largest of
its processes.
"""

import json
import random
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

import psutil
from transformers import AutoTokenizer

from torchspec.data.prepare import prepare

PLAIN_BATCH = 1000
WORDS = "the a of to and in that it is was for on are with as be at one have this from or had by but some what there we can".split()


def write_rows(path: Path, count: int, longest: int) -> Path:
    generator = random.Random(0)
    with path.open("w") as file:
        for i in range(count):
            question, answer = (" ".join(generator.choices(WORDS, k=generator.randint(2, longest))) for _ in range(2))
            messages = [{"role": "user", "content": f"{i} {question}?"}, {"role": "assistant", "content": f"{answer}."}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


class Memory(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.process, self.own, self.parent, self.largest_child = psutil.Process(), 0, 0, 0

    def run(self) -> None:
        while True:
            self.own = max(self.own, self.process.memory_info().rss - self.process.memory_info().shared)
            self.parent = max(self.parent, self.process.memory_info().rss)
            for child in self.process.children():
                try:
                    self.largest_child = max(self.largest_child, child.memory_info().rss)
                except psutil.NoSuchProcess:  # it ended in between
                    continue
            time.sleep(0.2)


def plain_encoding(rows: Path, target: Path) -> float:
    """Seconds that batches of rendered conversations take in `tokenizers`."""
    tokenizer, seconds = AutoTokenizer.from_pretrained(target), 0.0
    with rows.open() as file:
        while lines := list(islice(file, PLAIN_BATCH)):
            texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
            started = time.perf_counter()
            tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            seconds += time.perf_counter() - started
    return seconds


def main(target: Path, count: int, workers: int | None, longest: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = write_rows(Path(scratch) / "rows.jsonl", count, longest)
        memory = Memory()
        before = memory.process.memory_info().rss - memory.process.memory_info().shared
        memory.start()
        started = time.perf_counter()
        manifest = prepare([str(rows)], Path(scratch) / "out", target, workers=workers)
        seconds = time.perf_counter() - started
        plain = plain_encoding(rows, target)
    result = {
        "rows": count,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "workers": workers,
        "seconds": round(seconds, 1),
        "rows_per_second": round(count / seconds),
        "plain_rows_per_second": round(count / plain),
        "parent_mb_own_before": before >> 20,
        "parent_mb_own_peak": memory.own >> 20,
        "parent_mb_resident_peak": memory.parent >> 20,
        "worker_mb_resident_peak": memory.largest_child >> 20,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[2:]]
    main(Path(sys.argv[1]), numbers[0], numbers[1] if len(numbers) > 1 else None, numbers[2] if len(numbers) > 2 else 40)
