"""One process at a time writes a file: a lock beside it, which the system drops with its owner."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path

from model.common.errors import BadInput, Unwritable


def lock_path(path: Path) -> Path:
    """The file beside it that stands for the right to write it."""
    whole = path.absolute()  # "." has no name
    return whole.parent / f".{whole.name}.lock"


def drop_lock(path: Path) -> None:
    """Remove the lock of a file that nobody writes any more."""
    lock_path(path).unlink(missing_ok=True)


@contextmanager
def written_alone(*paths: Path, wait_s: float = 0.0):
    """Hold files, or folders, that this process writes, until the block ends.

    wait_s: how long another process may still have one.

    The lock of FOLDER/NAME is the file FOLDER/.NAME.lock, which stays there: all processes have to
    find the same one. Raises BadInput where another process holds one.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        for path in map(Path, paths):
            try:
                lock_path(path).parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(lock_path(path), timeout=wait_s))
            except Timeout:
                raise BadInput(f"{path}: another process is writing it") from None
            except OSError as error:
                raise Unwritable(path, error) from error
        yield
