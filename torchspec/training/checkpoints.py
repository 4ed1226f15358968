"""The folder of a run's checkpoints: which is the latest, which the best, and which have to go.

checkpoints/
  latest_checkpointed_iteration.txt
  best.json                      step and tau of the best evaluation
  iter_0000400/                  one of them: checkpoint.py
"""

import json
import shutil
import warnings
from pathlib import Path

from torchspec.errors import UserError
from torchspec.files.whole import whole

LATEST, BEST = "latest_checkpointed_iteration.txt", "best.json"


def folder(root: Path, step: int) -> Path:
    return root / f"iter_{step:07d}"


def point_to(root: Path, step: int, best_step: int, best_tau: float) -> None:
    """The checkpoint of this step is complete: it is the latest, and may be the best."""
    _replace(root / LATEST, str(step))
    if best_step == step:
        _replace(root / BEST, json.dumps({"step": best_step, "tau": best_tau}))


def _replace(file: Path, text: str) -> None:
    with whole(file) as partial:
        partial.write_text(text)


def rotate(root: Path, keep: int, best_step: int, newest: int) -> None:
    """Deletes all but the newest `keep` and the best, oldest first. A failed delete costs disk, not the run.

    What lies beyond `newest` was made before the run was sent back to an older checkpoint: it counts for nothing here.
    """
    by_age = sorted((path for path in root.glob("iter_*") if _step(path) <= newest), key=_step)
    for old in by_age[:-keep]:
        if old == folder(root, best_step):
            continue
        try:
            shutil.rmtree(old)
        except OSError as error:
            warnings.warn(f"checkpoint {old} could not be deleted ({error}); delete it by hand", stacklevel=2)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("iter_"))


def latest(root: Path) -> Path | None:
    pointer = root / LATEST
    if not pointer.is_file():
        return None
    if not pointer.read_text().strip().isdecimal():
        raise UserError(f"{pointer.resolve()} holds no step; write that of a checkpoint into it: the N of an iter_N folder beside it")
    return folder(root, int(pointer.read_text()))


def best(root: Path) -> Path:
    """The checkpoint with the highest held-out tau, or the latest where nothing was evaluated."""
    if (root / BEST).is_file():
        return folder(root, json.loads((root / BEST).read_text())["step"])
    newest = latest(root)
    if newest is None:
        raise UserError(f"{root.resolve()} holds no checkpoint (no {LATEST}); give a checkpoints folder or one iter_NNNNNNN folder")
    return newest
