"""python scripts/tools/prepare_perfectblend.py --output FILE.jsonl --sample-size N

The same as `torchspec prepare perfectblend --out FILE.jsonl --sample-size N`.
"""

import argparse
import sys

from torchspec.cli.main import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A seeded sample of open-perfectblend as clean conversations.")
    parser.add_argument("--output", required=True, help=".jsonl to write")
    parser.add_argument("--sample-size", "--max_samples", type=int, help="conversations to draw; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    size = [] if options.sample_size is None else ["--sample-size", str(options.sample_size)]
    sys.argv = ["torchspec", "prepare", "perfectblend", "--out", options.output, "--seed", str(options.seed), *size]
    main()
