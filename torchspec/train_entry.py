"""`python -m torchspec.train_entry --config CONFIG key=value ...`: the same as `torchspec train`."""

import sys

from torchspec.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
