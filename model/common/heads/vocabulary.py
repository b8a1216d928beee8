"""A draft vocabulary: of the target's ids a head scores only the most frequent ones.

The target still reads and accepts all of its ids, so that nothing changes but what is drafted.
Source: Zhao et al., FR-Spec, arXiv 2502.14856
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from model.common.errors import BadInput
from model.common.target.products import choose_products

FILE, NAME = "token_counts.safetensors", "counts"


def frequent_ids(counts: Tensor, num: int) -> Tensor:
    """The `num` most frequent ids, ascending; of equal ones the smaller are taken.

    So are ids that never occurred: the earlier merges of a vocabulary are the more common ones.

    >>> frequent_ids(torch.tensor([5, 0, 7, 5]), 2).tolist()
    [0, 2]
    """
    return torch.sort(counts, descending=True, stable=True).indices[:num].sort().values


def read_counts(path: str, vocab_size: int) -> Tensor:
    """Counts [V or less] of a file of model.common.training.token_counts, of a target of V ids."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise BadInput(
            f"{path}: {reason}; python -m model.common.training.token_counts makes token counts"
        ) from error
    counts = tensors.get(NAME)
    if counts is None or counts.dim() != 1 or counts.is_floating_point() or (counts < 0).any():
        raise BadInput(f"{path}: no tensor {NAME} of whole numbers, one for each id")
    if len(counts) > vocab_size:
        raise BadInput(f"{path}: counts of {len(counts)} ids, the target has {vocab_size}")
    return counts


def draft_ids(args, head_path: str, target) -> Tensor | None:
    """The ids of --draft-vocab, ascending [N], on the target's device; None = all of them."""
    if args.draft_vocab is None:
        if args.token_counts_path:
            raise BadInput("--token-counts-path says nothing without --draft-vocab")
        return None
    path = args.token_counts_path or str(Path(head_path) / FILE)
    counts = read_counts(path, target.vocab_size)
    if args.draft_vocab > len(counts):
        raise BadInput(f"--draft-vocab {args.draft_vocab}: {path} has counts of {len(counts)} ids")
    return frequent_ids(counts, args.draft_vocab).to(target.device)


def some_rows(linear: nn.Module, ids: Tensor) -> nn.Linear:
    """A Linear of some of another's outputs; its rows are copied once."""
    weight = getattr(linear, "weight", None)
    plain = type(weight) is nn.Parameter
    if not plain or not isinstance(linear, nn.Linear):
        kind = type(linear if plain else weight).__name__
        raise BadInput(f"--draft-vocab: rows of an output matrix of type {kind} cannot be taken")
    with torch.device("meta"):
        cut = nn.Linear(linear.in_features, len(ids), linear.bias is not None, dtype=weight.dtype)
    ids = ids.to(weight.device)
    taken = {name: tensor.detach()[ids] for name, tensor in linear.named_parameters()}
    cut.load_state_dict(taken, assign=True)
    choose_products(cut, weight.device)
    return cut.requires_grad_(False).eval()


class DraftIds:
    """Which of the target's ids a head's outputs stand for.

    ids  [N] long, ascending; None = all of the target's
    """

    def __init__(self, ids: Tensor | None = None):
        self.ids = ids

    def facts(self) -> dict:
        """As Drafter.facts()."""
        return {} if self.ids is None else {"draft_vocab": len(self.ids)}

    def of_target(self, places: Tensor) -> Tensor:
        """Numbers of outputs as the target's ids; -1 stays."""
        return places if self.ids is None else self.ids[places].masked_fill(places < 0, -1)

    def laws(self, laws: Tensor, vocab_size: int) -> Tensor:
        """Laws over the outputs [.., N] as laws over the target's V ids [.., V]: 0 elsewhere."""
        if self.ids is None:
            return laws
        whole = laws.new_zeros(*laws.shape[:-1], vocab_size)
        return whole.index_copy_(-1, self.ids, laws)
