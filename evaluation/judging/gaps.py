"""How far below the target's best each committed token lies, from one prefill a turn.

The gap of a token is L[best] - L[token], L the logits after everything before it. Greedy decoding
in exact arithmetic commits tokens of gap 0; readings in other shapes round otherwise, which moves a
gap up to the noise that noise.py measures.
"""

from dataclasses import dataclass

import torch

from evaluation.answers.meta import AnswerError
from evaluation.sampling.forcing import logit_blocks

BLOCK_ELEMENTS = 1 << 24  # logits at a time: 64 MiB in float32


@dataclass
class TurnGaps:
    """One answer turn [n tokens]: lists of gaps (logits, ulps, probabilities), ulps' size, bests.

    rival  (position, gap) of the token that the other file has where the two part, or None
    """

    choice: int
    turn: int
    ids: list
    gaps: list
    ulps: list
    probabilities: list
    ulp_size: list
    best: list
    rival: tuple | None = None


def answer_logits(target, prompt, ids, block=None):
    """Yield logits [r, V] for ids in order; block: rows a forward, None = as memory allows.

    The cache goes on from block to block, so block 1 is what plain decoding reads. Raises
    AnswerError for ids that this target cannot have committed.
    """
    size = len(prompt) + len(ids)
    if target.context is not None and size > target.context + 1:
        raise AnswerError(
            f"prompt and answer of {size} tokens are longer than the target's context of"
            f" {target.context}"
        )
    if not 0 <= min(ids) <= max(ids) < target.vocab_size:
        raise AnswerError(f"an id outside the target's vocabulary of {target.vocab_size}")
    block = block or max(1, min(2048, BLOCK_ELEMENTS // target.vocab_size))
    return logit_blocks(target, prompt, ids, block)


def ulp_sizes(values, dtype):
    """The distance between neighbouring numbers of `dtype` at |values|, float64.

    >>> ulp_sizes(torch.tensor([1.0, 3.0]), torch.bfloat16).tolist()
    [0.0078125, 0.015625]
    """
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.double().abs().clamp(min=info.tiny)).exponent
    return torch.ldexp(torch.full_like(values, info.eps, dtype=torch.float64), exponent - 1)


@torch.inference_mode()
def turn_gaps(target, prompt, ids, choice=0, turn=0, rival=None):
    """The TurnGaps of ids after prompt; rival: (position, token) to measure there as well."""
    columns = [[], [], [], [], []]
    rival_gap, done = None, 0
    for logits in answer_logits(target, prompt, ids):
        own = torch.tensor(ids[done : done + len(logits)], device=logits.device).unsqueeze(1)
        best, best_ids = logits.max(-1)
        mine = logits.gather(1, own).squeeze(1).double()
        top = best.double()
        scores = logits if logits.dtype == torch.float64 else logits.float()
        total = scores.logsumexp(-1).double()
        ulp = ulp_sizes(torch.maximum(top.abs(), mine.abs()), logits.dtype)
        gap = top - mine
        if not bool(gap.isfinite().all()):
            raise AnswerError("the target's logits are not finite")
        found = (gap, gap / ulp, (top - total).exp() - (mine - total).exp(), ulp, best_ids)
        for column, values in zip(columns, found):
            column += values.tolist()
        if rival and done <= rival[0] < done + len(logits):
            row = rival[0] - done
            rival_gap = (rival[0], float(top[row] - logits[row, rival[1]].double()))
        done += len(logits)
    gaps, ulps, probabilities, sizes, best = columns
    return TurnGaps(choice, turn, ids, gaps, ulps, probabilities, sizes, best, rival_gap)
