"""Counted n-grams of the text, and of the target's runners-up, drafted one token at a time."""

from __future__ import annotations

from torch import Tensor

from model.common.contract.sequence import PerSequence, SequenceDrafter
from model.common.errors import BadInput


class NGramStore:
    """How often each token followed each context of min_context to n - 1 tokens, and the best.

    The best is the first token seen after a context until another one's count, just increased, is
    strictly larger. A query asks the longest context first and goes to shorter ones where it is
    unknown (ANPD's adaptive n).

    >>> store = NGramStore(n=3)
    >>> store.learn([1, 2], [3])
    >>> store.query([1, 2]), store.query([9, 2]), store.query([9])
    ((3, 2), (3, 1), None)
    """

    def __init__(self, n: int, min_context: int = 1):
        self.sizes = range(min_context, n)
        self.counts: dict[tuple, dict[int, int]] = {}  # a context of j tokens is a j-tuple
        self.best: dict[tuple, int] = {}

    def clear(self) -> None:
        """Know nothing again."""
        self.counts.clear()
        self.best.clear()

    def learn(self, ids: list[int], tokens) -> None:
        """Count that each of tokens came after ids; only the last n - 1 of these are read."""
        for size in self.sizes:
            if size > len(ids):
                return
            context = tuple(ids[-size:])
            counts = self.counts.get(context)
            if counts is None:
                counts = self.counts[context] = {}
                self.best[context] = tokens[0]
            best = self.best[context]
            for token in tokens:
                counts[token] = counts.get(token, 0) + 1
                if counts[token] > counts[best]:
                    best = self.best[context] = token

    def query(self, ids: list[int]) -> tuple[int, int] | None:
        """(best next token, length of the context that knows it), or None."""
        for size in reversed(self.sizes):
            if size <= len(ids):
                token = self.best.get(tuple(ids[-size:]))
                if token is not None:
                    return token, size
        return None


class NASDSequence(SequenceDrafter):
    """One sequence: its text and a store. A store that is given is kept when a new one starts.

    Otherwise it begins empty with every prompt, also that of a question's second turn, as published
    (NASD resets its storage before every generation, ANPD fills its own from the prompt). What
    that forgets are the runners-up: the first turn's text stands in the second prompt.
    """

    def __init__(self, n: int, min_context: int, num_draft: int, store: NGramStore | None = None):
        self.n, self.min_context, self.num_draft, self.shared = n, min_context, num_draft, store

    def start(self, ids):
        self.ids: list[int] = []
        self.store = self.shared or NGramStore(self.n, self.min_context)
        self.observe(ids)

    def observe(self, ids, fillers=()):
        """Ids that were committed and, of each, the target's best tokens in its place."""
        for place, token in enumerate(ids):
            context = self.ids[-self.n :]
            self.store.learn(context, [token])
            if place < len(fillers):
                self.store.learn(context, fillers[place])
            self.ids.append(token)

    def propose(self):
        """A chain, each guess read as text by the next; it ends where no context is known."""
        ids, draft = self.ids[-self.n :], []
        while len(draft) < self.num_draft and (found := self.store.query(ids)):
            draft.append(found[0])
            ids.append(found[0])
        return draft


class NASDDrafter(PerSequence):
    """The sequences, and the fillers: the target's best tokens in the place of every committed one.

    filler_top_k  how many; 1 counts committed tokens only (ANPD)
    warm          one store for all slots and questions
    """

    def __init__(
        self,
        n: int = 4,
        min_context: int = 1,
        num_draft: int = 5,
        filler_top_k: int = 3,
        warm: bool = False,
    ):
        if min_context >= n:
            raise BadInput(f"--min-context {min_context} is not below --n {n}")
        store = NGramStore(n, min_context) if warm else None
        super().__init__(lambda: NASDSequence(n, min_context, num_draft, store), num_draft)
        self.store = store
        self.filler_top_k = filler_top_k
        self.reads_per_step = int(filler_top_k > 1)  # in observe()

    def forget(self):
        if self.store:
            self.store.clear()

    def reserve(self, num_slots, capacity, sampler):
        super().reserve(num_slots, capacity, sampler)
        self.sampler = sampler

    def observe(self, step):
        if self.filler_top_k == 1:
            super().observe(step)
            return
        most = max(len(ids) for ids in step.host_ids)
        fillers = likely(step.logits[:, :most], self.filler_top_k, self.sampler).tolist()
        for sequence, ids, lists in zip(self.sequences, step.host_ids, fillers):
            if ids:
                sequence.observe(ids, [[token for token in best if token >= 0] for best in lists])


def likely(logits: Tensor, num: int, sampler) -> Tensor:
    """The num best ids of every row that can be sampled, best first, then -1: [.., V] -> [.., num].

    Says of the best tokens what the sampler's warp leaves of them, without sorting all.
    """
    num = min(num, logits.shape[-1])
    if sampler.greedy:
        return logits.topk(num, dim=-1).indices
    scores = logits.float() / sampler.temperature
    values, ids = scores.topk(num, dim=-1)
    if 0 < sampler.top_k < scores.shape[-1]:
        scores = scores.topk(sampler.top_k, dim=-1).values
        ids[..., sampler.top_k :] = -1
    probs = (values - scores.logsumexp(-1, keepdim=True)).exp()
    cut = (probs.cumsum(-1) - probs >= sampler.top_p) | (probs < sampler.min_p * probs[..., :1])
    return ids.masked_fill(cut, -1)
