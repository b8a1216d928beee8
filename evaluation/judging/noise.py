"""How far this machine's own readings of the same prefixes differ: the bound of what rounding does.

A method that read logits A commits token t though the reference reading R prefers b. Then
A[t] >= A[b], so R[b] - R[t] <= (R[b] - R[t]) - (A[b] - A[t]): a gap made by rounding is at most the
change of a margin between two readings. What is measured is this change, for the two best tokens
of R, over prefixes read as a prefill (R), as single rows, as chains of 1+k rows and as trees of 1+k
rows (A), one text at a time as in a run: a single row has kernels of its own, whose changes were
three times those of other shapes on a CPU in bfloat16, and rows side by side would not show them.
The bound is FACTOR times the largest change seen, and never below FLOOR_ULPS units in the last
place, half a unit for the rounding of each of four logits.

How many positions: of changes that follow one law, the next is above the largest of n with
probability 1/(n+1), whatever the law. Twice that largest is further out: for a normal law and
n = 64 it is passed by one change in 60,000, which is a gap only at a near-tie. More would cost
readings and let larger gaps pass. Half of the positions are where the file's own gaps are widest,
so that a prefix on which rounding is unusually large is among them. What is measured with real
answers: tests/bench/bench_equal.py --noise.

No rounding: a change above ODD_SHARE of the distance between the position's best and median logit,
and above ODD_ULPS units in the last place (logits far from 0 round coarsely), is a fault of the
target or of what reads it. It would be the bound of its own effects, so nothing is judged by such
readings. A fault that all of our readings share shows against transformers' own forward of the same
ids, with its own attention and no cache, which is held to that limit and is no part of the bound.
"""

import random
from dataclasses import asdict, dataclass, replace

import torch

from evaluation.answers.meta import AnswerError
from evaluation.judging.gaps import ulp_sizes
from evaluation.judging.readings import Text, answer_logits, chains, check_text, own_logits
from evaluation.judging.verdicts import FACTOR, FLOOR_ULPS

WINDOW = 8  # positions read of a text
READINGS = {"row": "single rows", "chain": "chains", "tree": "trees"}
OWN = "transformers' own forward"
MAX_CHAIN = 6  # nodes of the answer in a tree; the others are strangers
ODD_SHARE = {"float64": 2e-4, "float32": 0.005, "float16": 0.025, "bfloat16": 0.125}
ODD_ULPS = 8.0


@dataclass
class Window:
    """Positions begin+1 .. end of a text: what its ids [begin, end) are read for."""

    text: Text
    begin: int
    end: int


@dataclass
class Noise:
    """Changes of the best two tokens' margin between readings, in logits."""

    dtype: str
    width: int  # rows a step beside the root
    positions: int
    samples: int
    median: float
    maximum: float
    by_reading: dict  # reading -> its maximum
    own: float  # largest change against transformers' own forward, no part of the bound
    odd: dict | None = None  # the change that is no rounding: reading, change, limit, where, ...
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


def window_at(text, position):
    """The Window of up to WINDOW positions of a text that ends at `position`, where that can be."""
    end = min(len(text.ids) - 1, max(position, WINDOW))
    return Window(text, max(0, end - WINDOW), end)


def sample_windows(texts, num_positions, seed):
    """Windows of so many positions at seeded places, of as many texts as there are, none twice."""
    draw = random.Random(seed)
    texts = [text for text in texts if len(text.ids) > 1]
    draw.shuffle(texts)
    places = [list(range(0, len(text.ids) - 1, WINDOW)) for text in texts]
    for begins in places:
        draw.shuffle(begins)
    found = []
    for nth in range(max(map(len, places), default=0)):
        for text, begins in zip(texts, places):
            if nth < len(begins) and num_positions > 0:
                end = min(begins[nth] + WINDOW, len(text.ids) - 1)
                found.append(Window(text, begins[nth], end))
                num_positions -= end - begins[nth]
    return found


def tree_logits(target, rows, base, width, generator):
    """Yield logits [r, V] of rows [1, n] behind `base` ids, in trees of 1+width rows.

    Each tree holds up to MAX_CHAIN of the next rows as a path, a stranger after each of them in the
    order of rows, and further strangers on the root; the path is committed, which moves its cache
    rows as an accepted draft's.
    """
    from model.common.contract.drafter import Draft
    from model.common.contract.trees import Tree

    at, size = 0, rows.shape[1]
    while at < size:
        length = min(MAX_CHAIN, (width + 1) // 2, size - 1 - at)
        path = [2 * i + 1 for i in range(length)]  # rows of the answer's ids
        nodes = torch.randint(target.vocab_size, (1, width), generator=generator).to(rows.device)
        parents = [-1] * width
        for i, row in enumerate(path):
            nodes[0, row - 1] = rows[0, at + 1 + i]
            parents[row - 1] = path[i - 1] - 1 if i else -1
            if row < width:
                parents[row] = parents[row - 1]  # the stranger beside it
        draft = Draft(nodes, Tree(torch.tensor(parents, device=rows.device), length))
        logits, _ = target.forward(rows[:, at], draft, base + at + 1)
        kept = torch.tensor([[0, *path]], device=rows.device)
        target.cache.keep(kept, torch.tensor([1 + length], device=rows.device))
        yield logits[0, kept[0]]
        at += 1 + length


def window_logits(target, window, width, generator):
    """(R [1+n, V], {reading: logits}) of a window's n positions and, of R, the one before them.

    The readings have n rows, of OWN 1+n.
    """
    text, begin, end = window.text, window.begin, window.end
    base, size = len(text.prompt) + begin, end - begin
    own = own_logits(target, text, end, 1 + size)
    reference = own[:0]
    for logits in answer_logits(target, [replace(text, ids=text.ids[: end + 1])]):
        reference = torch.cat([reference.to(logits), logits[0]])[-1 - size :]
    rows = torch.tensor([text.ids[begin:end]], device=target.device)

    def chained(block):
        strangers = (1, -size % block)
        more = torch.randint(target.vocab_size, strangers, generator=generator).to(rows.device)
        read = chains(target, torch.cat([rows, more], 1), base, block)
        return (logits[0] for logits in read)

    blocks = {"row": chained(1), "chain": chained(1 + width)}
    if target.reads_trees:
        blocks["tree"] = tree_logits(target, rows, base, width, generator)
    found = {OWN: text.scores(own, begin)}
    for name, read in blocks.items():
        target.cache.rewind(torch.tensor([base]))
        found[name] = text.scores(torch.cat(list(read))[:size], begin + 1)
    return reference, found


@torch.inference_mode()
def margin_changes(target, window, width, generator):
    """({reading: changes of the margin of R's two best tokens}, ulps [1+n], limits [1+n]).

    Of the window's n positions; of OWN, and of the ulps and limits, the one before them too.
    """
    reference, found = window_logits(target, window, width, generator)
    values, pairs = reference.topk(2, -1)
    margins, changes = values.double(), {}
    for name, logits in found.items():
        own = logits.gather(1, pairs[-len(logits) :]).double()
        change = (own - margins[-len(logits) :]) @ own.new_tensor([1.0, -1.0])
        if not bool(change.isfinite().all()):
            raise AnswerError(f"{window.text.where}: the target's logits are not finite ({name})")
        changes[name] = change.abs()
    return changes, *rounding_limits(reference, target.dtype)


def rounding_limits(logits, dtype):
    """(ulps [r], the most that rounding changes a margin [r]) of logits [r, V], float64."""
    coarse = max(dtype, torch.float32, key=lambda kind: torch.finfo(kind).eps)  # norms are float32
    best = logits.amax(-1).double()
    ulp = ulp_sizes(best, coarse)
    spread = best - logits.median(-1).values.double()
    share = ODD_SHARE[str(dtype).removeprefix("torch.")]
    return ulp, torch.maximum(share * spread, ODD_ULPS * ulp)


def oddest(window, changes, ulp, limit):
    """(share of the limit, facts) of a window's change that is the furthest from rounding."""
    found = (0.0, None)
    for name, change in changes.items():
        share, row = (change / limit[-len(change) :]).max(0)
        place = len(limit) - len(change) + int(row)
        facts = {
            "reading": READINGS.get(name, name),
            "change": float(change[row]),
            "ulps": float(change[row] / ulp[place]),
            "limit": float(limit[place]),
            "where": window.text.where,
            "position": window.begin + place,
        }
        found = max(found, (float(share), facts), key=lambda pair: pair[0])
    return found


def calibrate(target, windows, dtype, width, seed):
    """Measure Noise on Windows of answers. width: rows a step beside the root, at least 1."""
    if not windows:
        raise AnswerError("no answer of two tokens or more to measure the noise on")
    generator = torch.Generator().manual_seed(seed)
    found, odd = {}, (0.0, None)
    for window in windows:
        check_text(target, window.text)
        changes, ulp, limit = margin_changes(target, window, width, generator)
        odd = max(odd, oddest(window, changes, ulp, limit), key=lambda pair: pair[0])
        for name, change in changes.items():
            found.setdefault(name, []).append(change)
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    own = joined.pop(OWN)
    every = torch.cat(list(joined.values()))
    return Noise(
        dtype,
        width,
        sum(window.end - window.begin for window in windows),
        len(every),
        float(every.median()),
        float(every.max()),
        {name: float(changes.max()) for name, changes in joined.items()},
        float(own.max()),
        odd[1] if odd[0] > 1 else None,
    )
