"""Drafters around another one: called as it is, or with its drafts kept beside their text."""

from typing import NamedTuple

from torch import Tensor

from model.common.contract.drafter import Drafter


class Drafted(NamedTuple):
    """One draft of one running slot; ids: its committed tokens, the root last.

    probs  [n, V] that the nodes were drawn from, None = point guesses
    """

    slot: int
    ids: list[int]
    tokens: list[int]
    parents: list[int]
    probs: Tensor | None = None

    @property
    def paths(self) -> list[tuple[int, ...]]:
        """Tokens from the root's successor to each node."""
        paths = []
        for token, parent in zip(self.tokens, self.parents):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        return paths


class Around(Drafter):
    """Another drafter, called as it is."""

    def __init__(self, inner):
        self.inner, self.needs = inner, inner.needs
        self.max_nodes, self.max_depth = inner.max_nodes, inner.max_depth

    def reserve(self, num_slots, capacity, sampler):
        self.inner.reserve(num_slots, capacity, sampler)

    def start(self, prompt):
        self.inner.start(prompt)

    def propose(self):
        return self.inner.propose()

    def observe(self, step):
        self.inner.observe(step)

    def end(self, slots):
        self.inner.end(slots)


class Recording(Around):
    """Keeps what a drafter drafts for running slots, to be compared with slow references.

    drafts              [Drafted] in the order of steps, then of slots
    watch(drafter, one) optional: called with every Drafted
    """

    def __init__(self, inner, watch=None):
        super().__init__(inner)
        self.watch = watch
        self.drafts: list[Drafted] = []

    def reserve(self, num_slots, capacity, sampler):
        self.texts: list[list[int] | None] = [None] * num_slots
        super().reserve(num_slots, capacity, sampler)

    def start(self, prompt):
        for slot, ids in zip(prompt.slots, prompt.host_ids):
            self.texts[slot] = list(ids)
        self.inner.start(prompt)

    def end(self, slots):
        for slot in slots:
            self.texts[slot] = None
        self.inner.end(slots)

    def propose(self):
        draft = self.inner.propose()
        tokens = draft.tokens.tolist()
        parents = draft.layout.parents.expand(draft.tokens.shape).tolist()
        for slot, ids in enumerate(self.texts):
            if ids is not None:
                probs = None if draft.probs is None else draft.probs[slot].clone()
                one = Drafted(slot, list(ids), tokens[slot], parents[slot], probs)
                self.drafts.append(one)
                if self.watch:
                    self.watch(self.inner, one)
        return draft

    def observe(self, step):
        for text, ids in zip(self.texts, step.host_ids):
            if ids:
                text += ids
        self.inner.observe(step)
