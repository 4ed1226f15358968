"""One writer at a time: a lock that the operating system takes back when its holder dies, whatever killed it.

flock of Linux and macOS; on NFS it holds between nodes as well. A file system without locks (Lustre mounted without `flock`, NFS
without its lock service) is named in a warning, and the run goes on.
"""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchspec.errors import UserError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """While `what` ("torchspec train") writes the file or folder `path`, any other that wants to is refused at once.

    The lock lies beside `path`, whose folder is made if it is not there, and goes when the writer is done.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _hold(file, path)
    except OSError as error:
        raise UserError(f"{path.parent.resolve()} cannot be written ({error.strerror}); mend it, or write elsewhere") from error
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{what}, pid {os.getpid()} on {os.uname().nodename}".encode())
        yield
    finally:
        file.unlink(missing_ok=True)  # still held: whoever opened it meanwhile finds another file under its name, and tries again
        os.close(descriptor)


def _hold(file: Path, path: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # NFS answers with the latter
            holder = os.read(descriptor, 1000).decode() or "another run"
            os.close(descriptor)
            raise UserError(f"{path.resolve()} is being written by {holder}; wait for it, or write elsewhere") from None
        except OSError as error:
            warnings.warn(f"{file.parent.resolve()} takes no locks ({error.strerror}); start no second run on {path}", stacklevel=3)
            return descriptor
        if _is(descriptor, file):
            return descriptor
        os.close(descriptor)


def _is(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:  # its holder finished between our open and our lock
        return False
