"""A folder that is complete or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchspec.errors import UserError
from torchspec.files.whole import whole


def check_free(out: Path, force: bool) -> None:
    """An earlier draft is somebody's work: it is replaced only where that is asked for."""
    if not force and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UserError(f"{out.resolve()} exists already; add --force to replace it, or name another --out")


@contextmanager
def new_folder(out: Path, sign: str) -> Iterator[Path]:
    """Yields an empty folder that becomes `out` when the block ends; an older export there, told by its file `sign`, goes."""
    if out.exists() and not (out / sign).is_file():
        raise UserError(f"{out.resolve()} exists and is no export of torchspec (no {sign}); choose another folder")
    with whole(out) as partial:
        partial.mkdir(parents=True)
        yield partial
