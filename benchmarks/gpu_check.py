"""Everything that only a GPU can answer, in one run of a few minutes: results, gradients, resuming, speed, memory.

    python benchmarks/gpu_check.py --out benchmarks/results/              one line per check into CARD-TIME.jsonl there
    python benchmarks/gpu_check.py --only flex,losses                     all checks whose names begin like that
    python benchmarks/gpu_check.py --device cpu --small                   a rehearsal without a GPU: every check, tiny shapes

Each check writes one JSON line as soon as it is done: check, ok (null where there is nothing to judge), seconds, peak_gib and its
numbers; or error and where. A failed check stops none of the others. Those that ask whether the results are right run side by side, then
those that ask what they cost, alone. Needs no network, no server and no installation: the repository is found beside this file.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as `torchspec train` sets it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--only", default="", help="names of checks, or how they begin; several with commas")
    parser.add_argument("--budget", type=float, default=480, help="seconds; a check that would not fit any more is skipped")
    parser.add_argument("--out", type=Path, help="file for the lines, or a folder to name one in after the card")
    arguments = parser.parse_args()
    from gpu.place import Place
    from gpu.run import FAILED, run_checks

    place = Place.of(arguments.device, arguments.small, _file(arguments.out, arguments.device))
    raise SystemExit(0 if run_checks(place, arguments.only, arguments.budget) else FAILED)


def _file(out: Path | None, device: str) -> Path | None:
    if out is None or not (out.is_dir() or out.suffix == ""):
        return out
    import torch

    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return out / f"{re.sub('[^a-z0-9]+', '-', card.lower())}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"


if __name__ == "__main__":
    main()
