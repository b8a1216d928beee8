"""DDTree: the likeliest prefixes of a block, whose slots are independent, as one tree.

A prefix of depth d is a token of each of the first d slots, its score the sum of their log
probabilities. Level by level the best are kept, then the best of all: no descendant is likelier
than its ancestor, so that this is the set that a best-first search finds.
Source: Ringel, Romano, arXiv 2604.12989
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.trees import best_nodes


def likeliest_prefixes(ids: Tensor, logp: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, parents, scores [B, num]) of the num likeliest prefixes, of equals the shallower.

    ids, logp  [B, slots, k]: each slot's best ids, best first; k of at least num or all ids
    """
    level, first = logp[:, 0, :num], 0
    tokens, scores, parents = [ids[:, 0, :num]], [level], [torch.full_like(ids[:, 0, :num], -1)]
    for slot in range(1, ids.shape[1]):
        size, num_ids = level.shape[1], ids.shape[2]
        pool = (level.unsqueeze(-1) + logp[:, slot].unsqueeze(1)).flatten(1)  # [B, size * k]
        level, place = pool.sort(dim=1, descending=True, stable=True)
        level, place = level[:, :num], place[:, :num]
        tokens.append(ids[:, slot].gather(1, place % num_ids))
        parents.append(first + place // num_ids)
        scores.append(level)
        first += size
    tokens, scores, parents = (torch.cat(parts, 1) for parts in (tokens, scores, parents))
    tokens, parents, kept = best_nodes(tokens, scores, parents, num)
    return tokens, parents, scores.gather(1, kept)
