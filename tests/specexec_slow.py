"""SpecExec by its definition: best-first on a dictionary of paths, a plain forward for each node.

Nothing here is shared with the method's code.
"""

import copy
import math

import torch

from model.common.contract.drafter import Drafter


def plain(model):
    """The model with transformers' own attention."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


@torch.inference_mode()
def next_logits(model, ids):
    """Of the token after `ids`, read from the beginning without a cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def best_paths(laws, shape, deepest):
    """{path: score} of the budget best nodes, grown in passes as SpecExec grows them.

    laws(path) -> log probabilities [V] after a path; deepest: most tokens of a path.
    """
    bonus = math.log(shape.decay)
    found, done = {}, set()
    for number in range(shape.beam_len):
        open_paths = [path for path in found if path not in done and len(path) < deepest]
        open_paths.sort(key=lambda path: -found[path])
        batch = [()] if number == 0 else open_paths[: shape.num_beams]
        for path in batch:
            done.add(path)
            logq = laws(path).tolist()
            order = sorted(range(len(logq)), key=lambda token: -logq[token])
            for token in order[: shape.branch_width]:
                score = found.get(path, 0.0) + bonus + logq[token]
                if score > shape.min_log_prob:
                    found[(*path, token)] = score
        best = sorted(found, key=lambda path: -found[path])[: shape.budget]
        found = {path: found[path] for path in best}
    return found


def every_path(laws, vocab_size, depth, decay=0.95):
    """{path: score} of all paths up to a depth."""
    found, layer = {}, {(): 0.0}
    for _ in range(depth):
        layer = {
            (*path, token): score + math.log(decay) + logq
            for path, score in layer.items()
            for token, logq in enumerate(laws(path).tolist()[:vocab_size])
        }
        found |= layer
    return found


def paths_of(draft, row):
    """Token paths of a draft's nodes, inert ones left out."""
    parents = draft.parents.tolist() if draft.parents.dim() == 1 else draft.parents[row].tolist()
    paths = []
    for token, parent in zip(draft.tokens[row].tolist(), parents):
        above = () if parent < 0 else paths[parent]
        paths.append(None if token < 0 or above is None else (*above, token))
    return [path for path in paths if path is not None]


class Recording(Drafter):
    """Passes everything on to a drafter; keeps drafts with what was committed before them."""

    def __init__(self, inner):
        self.inner, self.needs = inner, inner.needs
        self.drafts = []  # (row, committed ids, room, draft)
        self.after_step = lambda drafter, committed: None

    def start(self, prefill, max_lengths, sampler):
        self.committed = [list(ids) for ids in prefill.host_ids]
        self.inner.start(prefill, max_lengths, sampler)

    def propose(self):
        draft = self.inner.propose()
        for row, room in enumerate(self.inner.reader.room):
            self.drafts.append((row, list(self.committed[row]), room, draft))
        return draft

    def observe(self, step):
        for row, ids in enumerate(step.host_ids):
            self.committed[row] += ids
        self.inner.observe(step)
        self.after_step(self.inner, self.committed)
