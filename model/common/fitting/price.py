"""What a forward of the target costs by the number of rows that it reads."""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Needs
from model.common.contract.trees import Tree
from model.common.loop.clock import Clock, now

# of timing; all widths take turns, so that a slower minute is one of all of them
MIN_ROUNDS, MAX_ROUNDS, LONGEST_S = 3, 12, 3.0


def row_counts(most: int) -> list[int]:
    """Rows that are measured: powers of two, and the most.

    >>> row_counts(60)
    [1, 2, 4, 8, 16, 32, 60]
    """
    return [1 << power for power in range((most - 1).bit_length())] + [most]


@torch.inference_mode()
def price_of_rows(
    target, prompt: list[int], num_slots: int, most: int, dearest: float, hidden: tuple = ()
) -> dict[int, float]:
    """{rows of a slot: seconds of a forward}, medians, with the prompt in every slot.

    most     rows; no more are tried where a forward takes `dearest` times as long as one of a row
    hidden   states that are read with it, as Needs.hidden
    """
    slots = list(range(num_slots))
    target.reserve(num_slots, len(prompt) + 1 + most)
    ids = torch.tensor([prompt] * num_slots, device=target.device)
    target.prefill(slots, ids, [len(prompt)] * num_slots, Needs())
    root = torch.zeros(num_slots, dtype=torch.long, device=target.device)

    def seconds(num_rows: int) -> float:
        clock = Clock(target.device)
        draft = _any_draft(ids, num_rows - 1)
        clock.mark("verify")
        target.forward(root, draft, len(prompt) + 1, hidden)
        clock.end_step()
        _, ((phases, _),) = clock.read()
        return phases["verify"]

    found: dict[int, list[float]] = {}
    for num_rows in row_counts(most):
        seconds(num_rows)  # the first of a width may compile or allocate
        found[num_rows] = [seconds(num_rows)]
        if found[num_rows][0] > dearest * found[1][0]:
            break
    begin = now(target.device)
    for number in range(1, MAX_ROUNDS):
        if number >= MIN_ROUNDS and now(target.device) - begin > LONGEST_S:
            break
        for num_rows, times in found.items():
            times.append(seconds(num_rows))
    return {num_rows: median(times) for num_rows, times in found.items()}


def _any_draft(ids: Tensor, num_nodes: int) -> Draft:
    """A binary tree of the prompts' ids [B, P], made anew as trees are that follow scores."""
    places = torch.arange(num_nodes, device=ids.device)
    parents = (places - 1).div(2, rounding_mode="floor")
    return Draft(ids[:, places % ids.shape[1]], Tree(parents, num_nodes.bit_length()))


def seconds_of(price: dict[int, float], num_rows: int) -> float:
    """Between measured counts on a straight line, beyond the last one as that.

    >>> seconds_of({1: 10.0, 2: 12.0, 4: 20.0}, 3)
    16.0
    """
    counts = sorted(price)
    above = next((count for count in counts if count >= num_rows), counts[-1])
    below = max((count for count in counts if count <= num_rows), default=counts[0])
    if above <= below:
        return price[below]
    share = (num_rows - below) / (above - below)
    return price[below] + share * (price[above] - price[below])
