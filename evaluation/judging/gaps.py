"""How far below the target's best each committed token lies, from one reading of each answer.

The gap of a token is L[best] - L[token], L the logits after everything before it. Greedy decoding
in exact arithmetic commits tokens of gap 0; readings in other shapes round otherwise, which moves a
gap up to the noise that noise.py measures.
"""

import math
from dataclasses import dataclass

import torch

from evaluation.answers.meta import AnswerError
from evaluation.judging.readings import Text, answer_logits, batches, check_text, padded


@dataclass
class TurnGaps:
    """One answer turn [n tokens]: lists of gaps (logits, ulps, probabilities), ulps' size, bests.

    rival_gap  of the token that the other file has where the two part, or None
    """

    text: Text
    gaps: list
    ulps: list
    probabilities: list
    ulp_size: list
    best: list
    rival_gap: float | None = None

    def widest(self):
        """(gap in ulps, position) of the token furthest off, the rival's where that is further."""
        position = max(range(len(self.ulps)), key=self.ulps.__getitem__)
        found = self.ulps[position], position
        if self.rival_gap is not None:
            parting = self.text.rival[0]
            found = max(found, (self.rival_gap / self.ulp_size[parting], parting))
        return found


def ulp_sizes(values, dtype):
    """The distance between neighbouring numbers of `dtype` at |values|, float64.

    >>> ulp_sizes(torch.tensor([1.0, 3.0]), torch.bfloat16).tolist()
    [0.0078125, 0.015625]
    """
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.double().abs().clamp(min=info.tiny)).exponent
    return torch.ldexp(torch.full_like(values, info.eps, dtype=torch.float64), exponent - 1)


def row_gaps(logits, own, rival, dtype):
    """(gap, in ulps, in probability, ulp, best id, the rival's gap) of each row, [S, r] each.

    logits [S, r, V]; own, rival [S, r]: the token committed there, and another one to measure.
    dtype: the target's, which its ulps are of; penalised logits come in float32.
    """
    own, rival = own.to(logits.device), rival.to(logits.device)
    best, best_ids = logits.max(-1)
    mine = logits.gather(2, own.unsqueeze(2)).squeeze(2).double()
    other = logits.gather(2, rival.unsqueeze(2)).squeeze(2).double()
    top = best.double()
    scores = logits if logits.dtype == torch.float64 else logits.float()
    total = scores.logsumexp(-1).double()
    ulp = ulp_sizes(torch.maximum(top.abs(), mine.abs()), dtype)
    gap = top - mine
    probability = (top - total).exp() - (mine - total).exp()
    return gap, gap / ulp, probability, ulp, best_ids, top - other


@torch.inference_mode()
def batch_gaps(target, texts):
    """The TurnGaps of texts that are read side by side."""
    own = padded(target, [text.ids for text in texts])
    rival = own.clone()
    for slot, text in enumerate(texts):
        if text.rival:
            rival[slot, text.rival[0]] = text.rival[1]
    parts, done = [], 0
    for logits in answer_logits(target, texts):
        here = slice(done, done + logits.shape[1])
        parts.append(row_gaps(logits, own[:, here], rival[:, here], target.dtype))
        done = here.stop
    columns = [torch.cat(column, 1).tolist() for column in zip(*parts)]
    for slot, text in enumerate(texts):
        *found, rivals = (column[slot][: len(text.ids)] for column in columns)
        if not all(map(math.isfinite, found[0])):
            raise AnswerError(f"{text.where}: the target's logits are not finite")
        yield TurnGaps(text, *found, rivals[text.rival[0]] if text.rival else None)


def turn_gaps(target, texts):
    """The TurnGaps of each text. Raises AnswerError for what this target cannot have committed."""
    for text in texts:
        check_text(target, text)
    found = [None] * len(texts)
    for indices in batches(target, texts):
        for index, gaps in zip(indices, batch_gaps(target, [texts[i] for i in indices])):
            found[index] = gaps
    return found
