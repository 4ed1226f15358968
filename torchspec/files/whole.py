"""Files and folders that are whole or not there: written beside their place, under a name that ends in `.partial`, and renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields where to write a file or folder, which then takes the place of `path`. What ends the block early leaves nothing behind, and
    `path` as it was; what a kill leaves, `writing` tidies up at the next start.
    """
    tidy(path)
    partial, old = _beside(path)
    try:
        yield partial
        _give_modes(partial, path)
        if path.is_dir():  # only an empty folder can be replaced
            path.rename(old)
        partial.replace(path)
    finally:
        tidy(path)


def tidy(path: Path) -> None:
    """Removes what a killed writer of `path` left, and finishes or takes back what it had begun. Nobody else may be writing."""
    partial, old = _beside(path)
    if old.is_dir() and not path.exists():
        old.rename(path)
    for left in (partial, old):
        if left.is_dir():
            shutil.rmtree(left)
    partial.unlink(missing_ok=True)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.partial"), path.with_name(f".{path.name}.replaced")


def _give_modes(partial: Path, path: Path) -> None:
    """A file keeps the mode of the one that it replaces; a new one has that of the umask: safetensors makes files for their owner alone."""
    umask = os.umask(0o077)  # it can be read only by setting it
    os.umask(umask)
    mode = S_IMODE(path.stat().st_mode) if path.is_file() else 0o666 & ~umask
    for file in [partial] if partial.is_file() else filter(Path.is_file, partial.rglob("*")):
        if S_IMODE(file.stat().st_mode) != mode:  # not every file system knows modes
            file.chmod(mode)
