"""Token Recycling by its definition."""

import torch

from model.common.contract.drafter import Drafter


class SlowRecycling(Drafter):
    """The method by its definition, beside the drafter that it is compared with: a dict of lists a
    slot, and a plain forward of every node's path.

    num_known     nodes other than unknown ones
    learned, cut  steps that it learned from, and that it did not
    """

    def __init__(self, inner, model, nodes):
        self.inner, self.model, self.nodes = inner, model, nodes
        self.needs, self.max_nodes, self.max_depth = inner.needs, len(nodes), inner.max_depth
        self.num_best = 1 + max(max(path) for path in nodes)
        self.unknown = [inner.unknown] * self.num_best
        self.shared: dict = {}
        self.num_known = self.learned = self.cut = 0

    def top(self, sequences):
        """The best next ids after each sequence."""
        longest = max(map(len, sequences))
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
        logits = self.model(padded).logits
        return [
            logits[i, len(ids) - 1].argsort(descending=True)[: self.num_best].tolist()
            for i, ids in enumerate(sequences)
        ]

    def reserve(self, num_slots, capacity, sampler):
        self.texts = [None] * num_slots
        self.best = [self.shared if self.inner.is_warm else {} for _ in range(num_slots)]
        self.inner.reserve(num_slots, capacity, sampler)

    def start(self, prompt):
        for slot, ids, continues in zip(prompt.slots, prompt.host_ids, prompt.continues):
            self.texts[slot] = list(ids)
            if not (continues or self.inner.is_warm):
                self.best[slot] = {}
            if self.needs.prompt_topk:
                read = self.top([ids[: end + 1] for end in range(len(ids) - 1)])
                self.best[slot].update(zip(ids, read))
        self.inner.start(prompt)

    def end(self, slots):
        for slot in slots:
            self.texts[slot] = None
        self.inner.end(slots)

    def propose(self):
        self.draft = draft = self.inner.propose()
        for slot, text in enumerate(self.texts):
            if text is not None:
                token = {(): text[-1]}
                for path in self.nodes:
                    line = self.best[slot].get(token[path[:-1]], self.unknown)
                    token[path] = line[path[-1]]
                    self.num_known += line is not self.unknown
                assert draft.tokens[slot].tolist() == [token[path] for path in self.nodes]
        return draft

    def observe(self, step):
        for slot, ids in enumerate(step.host_ids):
            if not ids:
                continue
            if len(ids) == step.count[slot]:
                self.learn(slot, self.draft.tokens[slot].tolist())
                self.learned += 1
            else:  # the answer ended inside the path
                self.cut += 1
            self.texts[slot] += ids
        self.inner.observe(step)

    def learn(self, slot, tokens):
        """Read the root and every node that has a token; the last one of a token counts."""
        token, text = dict(zip(self.nodes, tokens)), self.texts[slot]
        rows = [text]
        for path in self.nodes:
            if token[path] >= 0:
                rows.append(text + [token[path[:end]] for end in range(1, len(path) + 1)])
        for ids, best in zip(rows, self.top(rows)):
            self.best[slot][ids[-1]] = best
