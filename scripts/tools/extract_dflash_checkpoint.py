"""python scripts/tools/extract_dflash_checkpoint.py --checkpoint_dir OUTPUT_DIR/checkpoints/iter_NNNNNNN --output dflash_draft.pt

The same as `torchspec export --checkpoint DIR --out FILE.pt`; servers load the folder that `--out FOLDER` writes instead.
"""

import argparse
import sys

from torchspec.cli.main import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The bare tensors of a checkpoint's draft.")
    parser.add_argument("--checkpoint_dir", required=True, help="an iter_NNNNNNN folder, or a checkpoints folder (its best is taken)")
    parser.add_argument("--output", required=True, help=".pt file to write")
    options = parser.parse_args()
    sys.argv = ["torchspec", "export", "--checkpoint", options.checkpoint_dir, "--out", options.output]
    main()
