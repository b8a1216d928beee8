"""SPACE: groups of mask tokens, one group per outcome of a step, hold the next step's candidates.

With k masks a group, c_i the candidates and m_gj the j-th mask of group g, the rows after the root
are, as published,

    m_01 .. m_0k | c_1 | m_11 .. m_1k | c_2 | ... | c_k | m_k1 .. m_kk

Candidates are a chain off the root; group g hangs off c_g, group 0 off the root. If a step accepts
c_1 .. c_a, then m_a1 .. m_ak are what the target guesses for the tokens after the bonus.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter
from model.common.contract.trees import Tree
from model.common.errors import BadInput
from model.common.loop.ranking import best_id, finite_rows

IDS_FIELD, NUM_FIELD = "space_mask_ids", "space_mask_num"  # in the fine-tuned model's config.json
DEFAULT_NUM = 5


def read_masks(config, mask_ids: list[int] | None, num: int | None) -> list[int]:
    """The mask token of each place of a group, [k].

    config    of the model; its fields are used where mask_ids or num is None
    mask_ids  one id for all places, or an id each (those beyond num are left out)
    """
    num = num or getattr(config, NUM_FIELD, None) or DEFAULT_NUM
    named = mask_ids or getattr(config, IDS_FIELD, None)
    if not named:
        raise BadInput(f"the model's config.json has no {IDS_FIELD}; --mask-id N names a token id")
    if not isinstance(named, list) or not all(type(token) is int for token in named):
        raise BadInput(f"the model's config.json: {IDS_FIELD} is {named!r}, not a list of ids")
    vocab_size = config.get_text_config().vocab_size
    for token in named:
        if not 0 <= token < vocab_size:
            raise BadInput(f"--mask-id {token}: the model's vocabulary has {vocab_size} ids")
    if len(named) == 1:
        return named * num
    if len(named) < num:
        raise BadInput(f"--mask-num {num}: there are mask ids for {len(named)} places only")
    return named[:num]


def tree_parents(num_masks: int) -> list[int]:
    """Parents of the k (k + 2) nodes: a mask continues the node before it, c_i continues c_i-1.

    >>> tree_parents(2)
    [-1, 0, -1, 2, 3, 2, 5, 6]
    """
    group = num_masks + 1
    nodes = range(num_masks * (num_masks + 2))
    return [node - group if node % group == num_masks else node - 1 for node in nodes]


class SpaceDrafter(Drafter):
    """One static tree for all steps; the first step of an answer has masks and no candidates.

    mask_ids  the mask token of each place of a group, [k]
    nodes     [B, n] of the next draft; sound [B]: whether what it was heard from was finite
    """

    def __init__(self, mask_ids: list[int], device):
        k = len(mask_ids)
        self.mask_ids = torch.tensor(mask_ids, dtype=torch.long, device=device)
        self.tree = Tree(torch.tensor(tree_parents(k), dtype=torch.long, device=device), k)
        self.max_nodes, self.max_depth = k * (k + 2), k
        place = torch.arange(self.max_nodes, device=device) % (k + 1)
        self.probe = place < k
        self.masks = self.mask_ids[place.clamp(max=k - 1)]  # [n]
        self.candidates = torch.arange(1, k + 1, device=device) * (k + 1) - 1  # nodes c_1 .. c_k
        self.group = torch.arange(1, k + 1, device=device)  # rows of group 0

    def reserve(self, num_slots, capacity, sampler):
        self.nodes = self.nodes_of(self.mask_ids.new_full((num_slots, len(self.mask_ids)), -1))
        self.sound = torch.ones(num_slots, dtype=torch.bool, device=self.nodes.device)

    def start(self, prompt):
        nothing = self.mask_ids.new_full((len(prompt.slots), len(self.mask_ids)), -1)
        self.nodes[prompt.slots], self.sound[prompt.slots] = self.nodes_of(nothing), True

    def propose(self):
        return Draft(self.nodes, self.tree, probe=self.probe, sound=self.sound)

    def observe(self, step):
        self.nodes, self.sound = self._next_nodes(step.logits, step.count)

    def nodes_of(self, tokens: Tensor) -> Tensor:
        """All nodes [B, n] with candidates [B, k]; -1 = none."""
        nodes = self.masks.repeat(len(tokens), 1)
        nodes[:, self.candidates] = tokens
        return nodes

    def _next_nodes(self, logits: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """(nodes [B, n], sound [B]) behind a step, from its logits [B, 1+n, V] and tokens committed
        [B]."""
        accepted = (count - 1).clamp(min=0).unsqueeze(1)
        rows = accepted * (len(self.mask_ids) + 1) + self.group  # [B, k]
        index = rows.unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        heard = logits.gather(1, index)
        heard[..., self.mask_ids] = float("-inf")  # a mask is no candidate
        return self.nodes_of(best_id(heard)), finite_rows(heard).all(1)
