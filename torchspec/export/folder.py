"""A folder that is complete or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchspec.errors import UserError


@contextmanager
def new_folder(out: Path, sign: str) -> Iterator[Path]:
    """Yields an empty folder that becomes `out` when the block ends; an older export there, told by its file `sign`, goes."""
    if out.exists() and not (out / sign).is_file():
        raise UserError(f"{out.resolve()} exists and is no export of torchspec (no {sign}); choose another folder")
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
