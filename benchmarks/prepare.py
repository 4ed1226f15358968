"""Rows per second and memory of `torchspec prepare`: python benchmarks/prepare.py TARGET ROWS [WORKERS]

Generates ROWS short conversations of 2 to 40 words, no two alike, prepares them, and prints one JSON line. Memory is the largest
size seen, sampled five times a second: what is the parent's own (not the mapped pages of the Arrow file), and what is resident in it and
in the largest of its processes.
"""

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from torchspec.data.prepare import prepare

WORDS = "the a of to and in that it is was for on are with as be at one have this from or had by but some what there we can".split()


def write_rows(path: Path, count: int) -> Path:
    generator = random.Random(0)
    with path.open("w") as file:
        for i in range(count):
            question, answer = (" ".join(generator.choices(WORDS, k=generator.randint(2, 40))) for _ in range(2))
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


def main(target: Path, count: int, workers: int | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        rows = write_rows(Path(scratch) / "rows.jsonl", count)
        memory = Memory()
        before = memory.process.memory_info().rss - memory.process.memory_info().shared
        memory.start()
        started = time.perf_counter()
        manifest = prepare([str(rows)], Path(scratch) / "out", target, workers=workers)
        seconds = time.perf_counter() - started
    result = {
        "rows": count,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "workers": workers,
        "seconds": round(seconds, 1),
        "rows_per_second": round(count / seconds),
        "parent_mb_own_before": before >> 20,
        "parent_mb_own_peak": memory.own >> 20,
        "parent_mb_resident_peak": memory.parent >> 20,
        "worker_mb_resident_peak": memory.largest_child >> 20,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
