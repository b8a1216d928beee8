"""Code that comes with a checkpoint (auto_map in its config): run only where the user said so.

The permission is the process's: target, draft models, heads' targets and tokenizers alike. It is
given by --trust-remote-code alone, never by what an answer file says of its own run.
"""

from __future__ import annotations

from model.common.errors import BadInput

_permission = {"given": False}


def trust(given: bool) -> None:
    """Whether this process may run checkpoints' own code; it may not until this is called."""
    _permission["given"] = bool(given)


def trusted() -> bool:
    """For the argument of that name of transformers' loaders, which would ask the terminal else."""
    return _permission["given"]


def check_needed(path: str, error: Exception) -> None:
    """Raise BadInput that names the flag where an error of transformers' loaders asks for it."""
    if not trusted() and "trust_remote_code" in str(error):
        raise BadInput(
            f"{path}: needs code of its own (auto_map); --trust-remote-code runs it on this machine"
        ) from error
