"""Bad input: a line that names the file, flag or tensor, exit code 2."""

import errno
import gc
import json
import sys
import traceback
from contextlib import contextmanager

from model.common.visible import visible

CRASHED = 70  # exit code of an error that no code expects; 1 is a result: questions failed


def parse_json(text: str | bytes):
    """What it says. Raises ValueError, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class BadInput(Exception):
    """What the user gave cannot be used; the message is one line and names it."""


class Unsupported(BadInput):
    """A model that our cache and attention cannot serve; it may run on its own."""


class Unwritable(BadInput):
    """A file that takes nothing more: no question's fault, the run ends."""

    def __init__(self, path, error: Exception):
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        super().__init__(f"{path}: cannot be written: {reason}")


# of an OSError that says what the disk or the rights to it do not allow: no fault of the code
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def disk_fault(error: Exception) -> str | None:
    """What the disk, or the rights to it, refused: "FILE: reason"; None: it is another error."""
    if not isinstance(error, OSError) or error.errno not in DISK:
        return None
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


@contextmanager
def ends_in_one_line(prog: str, verb: str = "goes on"):
    """Turn BadInput into its line and exit code 2, an interruption into a hint and 130.

    Any other error keeps its traceback and gets an exit code of its own, CRASHED.

    verb: what the same command does after an interruption.
    """
    try:
        yield
    except BadInput as error:
        print(visible(f"{prog}: {' '.join(str(error).split())}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command {verb}", file=sys.stderr)
        gc.freeze()  # else Python's exit looks for cycles of all that torch made: 1.8 s, not 0.4
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("model", "evaluation"):  # no environment has it
            traceback.print_exc()
            sys.exit(CRASHED)
        print(
            f"{prog}: no package {error.name} in {sys.executable}; ./eval.sh --setup prepares an"
            " environment and prints its python (source .venv/bin/activate)",
            file=sys.stderr,
        )
        sys.exit(2)
    except Exception as error:
        fault = disk_fault(error)
        if fault is None:
            traceback.print_exc()
            sys.exit(CRASHED)
        print(f"{prog}: {fault}; the same command {verb}", file=sys.stderr)
        sys.exit(2)


def exit_answered(prog: str, failed: int) -> None:
    """End a run that has come to all its questions: exit code 0, or 1 if some have failed."""
    if failed:
        plural = "s" if failed > 1 else ""
        print(
            f"{prog}: {failed} question{plural} failed, see `error` in the answers",
            file=sys.stderr,
        )
    sys.exit(1 if failed else 0)


def first_line(error: Exception) -> str:
    """The first line of its message that says anything; with its kind where it has none.

    A line that ends in a colon says nothing without the next ones.
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):
        return one_line(error)
    if lines[0].rstrip().endswith(":"):
        return " ".join(" ".join(lines).split())[:500]
    return lines[0].strip()


def one_line(error: Exception) -> str:
    """An error as records and messages say it."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
