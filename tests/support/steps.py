"""Steps as the loop gives them to a drafter, made from lists."""

import torch

from model.common.contract.drafter import Step


def padded(rows, width):
    """[S, width] long, padded with -1."""
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def prompt_step(host_ids, max_lengths=None, slots=None):
    """Prompts and their first tokens, host_ids, that begin in `slots` (default: 0, 1, ...)."""
    prompts = [ids[:-1] for ids in host_ids]
    longest = max(map(len, prompts))
    return Step(
        slots=slots or list(range(len(host_ids))),
        tokens=padded(prompts, longest),
        path=padded([list(range(len(ids))) for ids in prompts], longest),
        count=torch.tensor([len(ids) for ids in prompts]),
        new_tokens=padded([ids[1:] for ids in host_ids], longest),
        next_token=torch.tensor([ids[-1] for ids in host_ids]),
        host_ids=host_ids,
        max_committed=longest + 1,
        continues=[False] * len(host_ids),
        max_lengths=max_lengths or [1000] * len(host_ids),
    )


def chain_step(host_ids, max_committed=0):
    """A step of all slots that commits these ids, the first rows of a chain; [] = idle."""
    return path_step([list(range(len(ids))) for ids in host_ids], host_ids, max_committed)


def path_step(paths, host_ids, max_committed=0, width=None):
    """A step of all slots that commits the rows of paths, whose successors are host_ids."""
    width = width or max(1, *map(len, paths))
    return Step(
        slots=list(range(len(paths))),
        tokens=torch.zeros(len(paths), width, dtype=torch.long),
        path=padded(paths, width),
        count=torch.tensor([len(ids) for ids in host_ids]),
        new_tokens=padded(host_ids, width),
        next_token=torch.tensor([ids[-1] if ids else 0 for ids in host_ids]),
        host_ids=host_ids,
        max_committed=max_committed,
    )
