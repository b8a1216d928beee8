"""A training step of draft heads: optimizer, learning rate, seeds, the loss and its memory."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGIT_ROWS = 1024  # of which a head's logits are there at a time


class LossModule(nn.Module):
    """A method's loss behind forward(), so that DDP and autocast see one module per step."""

    def __init__(self, method):
        super().__init__()
        self.module, self.method = method.module, method

    def forward(self, batch):
        """(loss, {metric: value}) of a Batch."""
        return self.method.loss(batch)


def summed(function, *rows: Tensor) -> tuple[Tensor, ...]:
    """The sums that function(*rows) gives, from logits of LOGIT_ROWS rows at a time.

    A chunk's logits are forgotten, and made again in the backward pass; a batch of fewer rows is
    one chunk, made once. Example: logits of 16,384 rows over 128,000 ids are 8.4 GB in float32, of
    1,024 rows 0.5 GB, and a cross-entropy and its gradient hold several tensors of that size.

    function  of tensors [n, ..] -> scalars, sums over these n rows
    rows      tensors [N, ..]
    """
    if len(rows[0]) <= LOGIT_ROWS:
        return function(*rows)
    chunks = zip(*(part.split(LOGIT_ROWS) for part in rows))
    sums = [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]
    return tuple(sum(parts) for parts in zip(*sums))


def make_optimizer(module: nn.Module, args) -> torch.optim.Optimizer:
    """AdamW over what requires a gradient; weight decay on matrices only."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=tuple(args.betas))


def rate_share(progress: float, args) -> float:
    """Share of the peak learning rate; progress: share of the budget, this step included.

    Linear warm-up from 0, then the schedule down to --min-rate.
    """
    if progress < args.warmup:
        return progress / args.warmup
    if args.schedule == "constant":
        return 1.0
    rest = min(1.0, (progress - args.warmup) / max(1 - args.warmup, 1e-9))
    fall = 1 - rest if args.schedule == "linear" else (1 + math.cos(math.pi * rest)) / 2
    return args.min_rate + (1 - args.min_rate) * fall


def seed_all(*parts) -> None:
    """Seed torch's generators from the run's seed and the place in the run."""
    torch.manual_seed(random.Random(" ".join(map(str, parts))).getrandbits(63))
