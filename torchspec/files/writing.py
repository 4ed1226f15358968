"""What everything that writes has in common: it is alone, and where it is stopped or the disk is full it says what is kept."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from torchspec.errors import Stopped, UserError
from torchspec.files.lock import locked
from torchspec.files.whole import tidy

MEND = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or write elsewhere"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable for this user, or write elsewhere"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "look after this disk, or write elsewhere"),
}


@contextmanager
def writing(path: Path, what: str, kept: Callable[[], str]) -> Iterator[None]:
    """While `what` ("torchspec train") writes the file or folder `path`.

    kept: one sentence about what is left and how to go on, asked for when it ends early.
    """
    try:
        with locked(path, what):
            tidy(path)
            yield
    except Stopped as stop:
        raise Stopped(stop.number, str(stop) or f"{what} was stopped: {kept()}") from None
    except (OSError, SafetensorError) as error:
        if (sentence := of_the_disk(error, str(path))) is None:
            raise
        raise UserError(f"{sentence}; {kept()}") from error


def of_the_disk(error: OSError | SafetensorError, path: str) -> str | None:
    """What the user can mend; none where it is no matter of a disk. path: what was being written, if the error does not name it."""
    number = error.errno if isinstance(error, OSError) else _number(error)
    if number not in MEND:
        return None
    where = (isinstance(error, OSError) and error.filename) or path
    return f"{where} cannot be written or read ({os.strerror(number)}); {MEND[number]}"


def _number(error: SafetensorError) -> int | None:
    """safetensors says it in words alone: `I/O error: No space left on device (os error 28)`."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return found and int(found[1])
