"""DFlash's drafts of a block: a chain, or DDTree's tree of its likeliest prefixes."""

from __future__ import annotations

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.contract.trees import Tree
from model.common.heads.head import module_bytes
from model.common.loop.ranking import best_id, finite_rows, top_ids, top_logp
from model.common.loop.sampling import DRAFT, draw
from model.dflash.head import BlockHead
from model.dflash.tree import likeliest_prefixes


class BlockDrafter(Drafter):
    """Keeps the head's cache true: it has the target's states of all committed tokens but the root.

    head     a BlockHead
    root     [B] last committed token of each slot
    longest  host int: tokens of the longest running sequence in the head's cache
    """

    def __init__(self, head: BlockHead, max_nodes: int, max_depth: int | None = None):
        self.head, self.max_nodes, self.max_depth = head, max_nodes, max_depth
        self.needs = Needs(hidden=tuple(dict.fromkeys(head.needs)))

    def facts(self):
        return {"head_bytes": module_bytes(self.head.module), **self.head.facts()}

    def reserve(self, num_slots, capacity, sampler):
        head, self.sampler = self.head, sampler
        deepest = self.max_nodes if self.max_depth is None else self.max_depth
        head.reserve(num_slots, capacity + max(head.design.block_size, 1 + deepest))
        self.root = torch.zeros(num_slots, dtype=torch.long, device=head.device)

    def start(self, prompt):
        states = self.head.states_of(prompt.hidden)
        self.head.read_prompt(prompt.slots, states, prompt.count)
        self.root[prompt.slots] = prompt.next_token.to(self.root.device)
        self.longest = prompt.max_committed - 1

    def observe(self, step):
        if step.max_committed == 0:
            return
        states = {name: step.committed(name) for name in self.needs.hidden}
        self.head.read(self.head.states_of(states), step.count, self.longest)
        self.root = step.next_token.to(self.head.device, copy=True)
        self.longest = step.max_committed - 1

    def end(self, slots):
        self.head.cache.clear(slots)

    def choose(self, scores: Tensor, first: int = 0) -> tuple[Tensor, Tensor | None]:
        """(places of the choices [B, n], laws [B, n, N] that they are drawn from, greedy: None)
        among scores [B, n, N] of n slots from `first` on, counted from 0."""
        if self.sampler.greedy:
            return best_id(scores), None
        laws = self.sampler.warp(scores)
        uniforms = self.sampler.uniform(scores.shape[1], DRAFT, first)
        return draw(laws, uniforms.to(laws.device)), laws

    def as_chain(self, tokens: Tensor, laws: Tensor | None, sound: Tensor) -> Draft:
        """A chain of tokens [B, n]; laws [B, n, V_d]: of the head's ids, None = greedy."""
        probs = None
        if laws is not None:
            probs = self.head.draft_ids.laws(laws, self.head.vocab_size)
        return Draft(tokens, probs=probs, sound=sound)


class DFlashDrafter(BlockDrafter):
    """Slots are independent of each other: all are drawn at once, each from its own law, and
    rejection is exact. DFlash2's selector walks through candidates, each given the last.

    num_nodes  None = a chain, else of DDTree, whose nodes are point guesses, of the slots' own laws
    """

    def __init__(self, head: BlockHead, num_nodes: int | None = None, fits_tree: bool = False):
        depth = head.design.num_drafts
        super().__init__(head, num_nodes or depth, depth if num_nodes else None)
        self.fits_tree = fits_tree

    def resize(self, num_nodes, depth, paths=None):
        self.max_nodes, self.max_depth = num_nodes, depth

    def propose(self):
        states = self.head.draft(self.root, self.longest)
        logits = self.head.module.logits(states)  # [B, n, V_d]
        if self.max_depth is not None:
            return self._tree(logits[:, : self.max_depth])
        sound = finite_rows(logits).all(1)
        if self.head.design.selector:
            return self._selected(states, logits, sound)
        places, laws = self.choose(logits)
        return self.as_chain(self.head.draft_ids.of_target(places), laws, sound)

    def _tree(self, logits: Tensor) -> Draft:
        """The likeliest prefixes, at temperature 1 whatever the sampling settings."""
        ids, logp = top_logp(logits, min(self.max_nodes, logits.shape[-1]))
        tokens, parents, scores = likeliest_prefixes(ids, logp, self.max_nodes)
        sound = ~logp.isnan().flatten(1).any(1)
        tokens = self.head.draft_ids.of_target(tokens)
        return Draft(tokens, Tree(parents, self.max_depth), sound=sound, scores=scores)

    def _selected(self, states: Tensor, logits: Tensor, sound: Tensor) -> Draft:
        """DFlash2's walk through the best candidates of each slot."""
        selector = self.head.module.candidate_selector
        ids = top_ids(logits, min(selector.num_candidates, logits.shape[-1]))  # [B, n, k]
        parts = (part.split(1, 1) for part in (states, ids, logits.gather(-1, ids)))
        tokens, laws, whole = [self.root.unsqueeze(1)], [], None
        for slot, (state, candidates, scores) in enumerate(zip(*parts)):
            place, law = self.choose(selector(state, tokens[-1], candidates, scores), slot)
            tokens.append(candidates.gather(2, place.unsqueeze(2)).squeeze(2))
            laws.append(law)
        if not self.sampler.greedy:
            law = torch.cat(laws, 1)  # [B, n, k]
            whole = law.new_zeros(logits.shape).scatter_(2, ids, law)
        return self.as_chain(torch.cat(tokens[1:], 1), whole, sound)
