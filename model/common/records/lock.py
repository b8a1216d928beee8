"""One process at a time writes a file: a lock beside it, which the system drops with its owner."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model.common.errors import BadInput, Unwritable

LOOK_S = 0.1  # between two looks at a lock that is waited for


@contextmanager
def written_alone(*paths: Path, wait_s: float = 0.0):
    """Hold files, or folders, that this process writes, until the block ends.

    The lock of FOLDER/NAME is the file FOLDER/.NAME.lock, there as long as it is held (or until the
    next holder goes, where one was killed). Raises BadInput where another process holds one for
    more than wait_s seconds.
    """
    with ExitStack() as held:
        for path in map(Path, paths):
            lock = lock_path(path)
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                file = _take(lock, time.monotonic() + wait_s)
            except BlockingIOError:
                raise BadInput(f"{path}: another process is writing it") from None
            except OSError as error:
                raise Unwritable(path, error) from error
            held.callback(file.close)
            held.callback(lock.unlink, missing_ok=True)  # before that, as long as it is held
        yield


def lock_path(path: Path) -> Path:
    """The file beside it that stands for the right to write it."""
    whole = path.absolute()  # "." has no name
    return whole.parent / f".{whole.name}.lock"


def _take(lock: Path, until: float):
    """The open file of a lock that is ours now. Raises BlockingIOError where it stays another's."""
    while True:
        file = lock.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(file, lock):  # else its holder has removed it since we opened it
                return file
            file.close()
        except BlockingIOError:
            file.close()
            if time.monotonic() >= until:
                raise
            time.sleep(LOOK_S)
        except BaseException:
            file.close()
            raise


def _is_there(file, lock: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except FileNotFoundError:
        return False
