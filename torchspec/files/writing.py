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
            yield
    except (KeyboardInterrupt, Stopped) as stop:
        raise type(stop)(*(stop.args or [f"{what} was stopped: {kept()}"])) from None
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _number(error)
        if number not in MEND:
            raise
        where = (isinstance(error, OSError) and error.filename) or path
        raise UserError(f"{where} cannot be written or read ({os.strerror(number)}); {MEND[number]}; {kept()}") from error


def _number(error: SafetensorError) -> int | None:
    """safetensors says it in words alone: `I/O error: No space left on device (os error 28)`."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return found and int(found[1])
