"""How far this machine's own readings of the same prefixes differ: the bound of what rounding does.

A method that read logits A commits token t though the reference reading R prefers b. Then
A[t] >= A[b], so R[b] - R[t] <= (R[b] - R[t]) - (A[b] - A[t]): a gap made by rounding is at most the
change of a margin between two readings. What is sampled is this change, for the two best tokens of
R, over prefixes read as a prefill (R), as single rows, as chains of 1+k rows and as trees of 1+k
rows (A). The bound is FACTOR times the largest change seen, and never below FLOOR_ULPS units in the
last place, half a unit for the rounding of each of four logits.
"""

import random
from dataclasses import asdict, dataclass

import torch

from evaluation.answers.meta import AnswerError
from evaluation.judging.gaps import answer_logits

FACTOR = 2.0
FLOOR_ULPS = 2.0
TOKENS_A_TURN = 96
READINGS = ("row", "chain", "tree")
MAX_CHAIN = 6  # nodes of the answer in a tree; the others are strangers


@dataclass
class Noise:
    """Changes of the best two tokens' margin between readings, in logits."""

    dtype: str
    width: int  # rows a step beside the root
    seed: int
    positions: int
    samples: int
    median: float
    quantile: float  # 0.9999
    maximum: float
    by_reading: dict  # reading -> its maximum
    factor: float = FACTOR
    floor_ulps: float = FLOOR_ULPS

    @property
    def bound(self):
        """Largest gap in logits that counts as rounding, before the floor."""
        return self.factor * self.maximum

    def bound_at(self, ulp_size):
        """The bound where the logits' ulp is this."""
        return max(self.bound, self.floor_ulps * ulp_size)

    def record(self):
        """For the report."""
        return {**asdict(self), "bound": self.bound}


def tree_logits(target, prompt, ids, width, generator):
    """Yield logits [r, V] for ids, read as trees of 1+width rows: the answer among strangers.

    Each tree holds up to MAX_CHAIN of the answer's next ids as a path, a stranger after each of
    them in the order of rows, and further strangers on the root; the path is committed, which
    moves its cache rows as an accepted draft's.
    """
    from model.common.contract.drafter import Draft, Needs
    from model.common.contract.trees import Tree

    tokens = torch.tensor([prompt + ids], device=target.device)
    size, at = tokens.shape[1], len(prompt)
    target.reserve(1, size + width)
    yield target.prefill([0], tokens[:, :at], [at], Needs()).logits
    while at < size - 1:
        chain = min(MAX_CHAIN, (width + 1) // 2, size - 2 - at)
        path = [2 * i + 1 for i in range(chain)]  # rows of the answer's ids
        nodes = torch.randint(target.vocab_size, (1, width), generator=generator).to(tokens.device)
        parents = [-1] * width
        for i, row in enumerate(path):
            nodes[0, row - 1] = tokens[0, at + 1 + i]
            parents[row - 1] = path[i - 1] - 1 if i else -1
            if row < width:
                parents[row] = parents[row - 1]  # the stranger beside it
        draft = Draft(nodes, Tree(torch.tensor(parents, device=tokens.device), chain))
        logits, _ = target.forward(tokens[:, at], draft, at + 1)
        rows = torch.tensor([[0, *path]], device=tokens.device)
        target.cache.keep(rows, torch.tensor([1 + chain], device=tokens.device))
        yield logits[0, rows[0]]
        at += 1 + chain


@torch.inference_mode()
def margin_changes(target, prompt, ids, width, generator):
    """{reading: changes [n] of the margin of the prefill's two best tokens}, float64."""
    best = [logits.topk(2, -1) for logits in answer_logits(target, prompt, ids)]
    pairs = torch.cat([found.indices for found in best])
    values = torch.cat([found.values for found in best]).double()
    margin = values[:, 0] - values[:, 1]
    readings = {
        "row": answer_logits(target, prompt, ids, 1),
        "chain": answer_logits(target, prompt, ids, 1 + width),
        "tree": tree_logits(target, prompt, ids, width, generator),
    }
    changes = {}
    for name, blocks in readings.items():
        done, margins = 0, []
        for logits in blocks:
            own = logits.gather(1, pairs[done : done + len(logits)]).double()
            margins.append(own[:, 0] - own[:, 1])
            done += len(logits)
        changes[name] = (torch.cat(margins) - margin).abs()[1:]  # the first is the prompt's prefill
    return changes


def calibrate(target, texts, dtype, width, num_tokens, seed):
    """Measure Noise on answers [(prompt ids, answer ids)], num_tokens positions in seeded order.

    width: rows a step beside the root, at least 1.
    """
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    generator = torch.Generator().manual_seed(seed)
    found, left = {name: [] for name in READINGS}, num_tokens
    for index in order:
        prompt, ids = texts[index]
        ids = ids[: 1 + min(TOKENS_A_TURN, left)]
        if len(ids) < 2:
            continue
        for name, changes in margin_changes(target, prompt, ids, width, generator).items():
            found[name].append(changes)
        left -= len(ids) - 1
        if left <= 0:
            break
    if not found["row"]:
        raise AnswerError("no answer of two tokens or more to measure the noise on")
    joined = {name: torch.cat(changes) for name, changes in found.items()}
    every = torch.cat(list(joined.values()))
    return Noise(
        dtype,
        width,
        seed,
        num_tokens - left,
        len(every),
        float(every.median()),
        float(every.quantile(0.9999)),
        float(every.max()),
        {name: float(changes.max()) for name, changes in joined.items()},
    )
