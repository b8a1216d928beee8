"""The control: how often the baseline differs from itself when more rows are read at a time.

The baseline's own answers are read again in steps of as many rows as the method's. That changes
nothing but the shape of a step, so what differs then is rounding; no decoding is needed, since up
to the first token that differs the prefix is known. Newcombe's hybrid score interval (method 10,
Statistics in Medicine 17, 1998) of the difference of two proportions, made of two Wilson intervals,
says whether a method differs more often; it takes the two as independent, which on the same
questions is cautious.
"""

import statistics

import torch

from evaluation.judging.gaps import row_gaps
from evaluation.judging.readings import answer_logits, batches, padded
from evaluation.judging.verdicts import MULTIPLE
from evaluation.speedup.intervals import newcombe
from model.common.loop.verify import best_id

WIDTH_UNKNOWN = 16  # nodes a step where no file says how many were drafted


def typical_width(answers):
    """(median of the drafted nodes a step over the steps that drafted, whether it is recorded)."""
    choices = (choice for question in answers.questions.values() for choice in question.choices)
    drafted = [n for choice in choices for turn in choice.drafted or [] for n in turn if n > 0]
    if not drafted:
        return WIDTH_UNKNOWN, False
    return max(1, round(statistics.median(drafted))), True


@torch.inference_mode()
def flips(target, texts, width):
    """[(gap, ulp, text, position)] of tokens that are not the best where 1+width rows are read.

    The first of each text: behind it decoding would have gone another way. The first token of a
    text is the prefill's, which a draft does not change.
    """
    found = []
    for indices in batches(target, texts, 1 + width):
        batch = [texts[i] for i in indices]
        ids = padded(target, [text.ids for text in batch])
        done, first = 0, {}
        for logits in answer_logits(target, batch, 1 + width):
            own = ids[:, done : done + logits.shape[1]]
            logits = logits[:, : own.shape[1]]
            gap, _, _, ulp, _, _ = row_gaps(logits, own, own, target.dtype)
            for slot, row in (best_id(logits) != own).nonzero().tolist():
                if 0 < done + row < len(batch[slot].ids) and slot not in first:
                    fact = float(gap[slot, row]), float(ulp[slot, row])
                    first[slot] = *fact, batch[slot], done + row
            done += logits.shape[1]
        found += first.values()
    return found


def run_control(target, asked, differing, noise, seed):
    """Read the baseline's answers 1+width rows at a time.

    asked {question id: Texts of the baseline's answer}, sampled with `seed`; differing: ids of
    questions that the method answers otherwise. A question differs where some token is not the best
    in this reading: until then the prefix is the baseline's own, so decoding with as many rows
    gives the same up to there. Returns a dict for the report; its "odd" is a token that is further
    off than rounding can be.
    """
    found = flips(target, [text for texts in asked.values() for text in texts], noise.width)
    hits = {id(text) for _, _, text, _ in found}
    control_differ = [name for name, texts in asked.items() if hits & set(map(id, texts))]
    method_differ = [name for name in asked if name in differing]
    low, high = newcombe(len(method_differ), len(asked), len(control_differ), len(asked))
    odd = [flip for flip in found if flip[0] > MULTIPLE * noise.bound_at(flip[1])]
    gap, _, text, position = max(odd, key=lambda flip: flip[0], default=(None,) * 4)
    return {
        "questions": len(asked),
        "width": noise.width,
        "seed": seed,
        "method_differ": len(method_differ),
        "control_differ": len(control_differ),
        "control_differing": control_differ,
        "difference": (len(method_differ) - len(control_differ)) / len(asked),
        "interval": [low, high],
        "interval_of": "Newcombe's hybrid score (method 10), 95 %",
        "significant": low > 0,
        "odd": {"change": gap, "where": text.where, "position": position} if odd else None,
    }
