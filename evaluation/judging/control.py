"""The control: how often the baseline differs from itself when idle rows are read beside it.

Rows that never match change nothing but the shape of a step, as a method's drafts do, so what
differs then is rounding. Newcombe's hybrid score interval (method 10, Statistics in Medicine 17,
1998) of the difference of two proportions, made of two Wilson intervals, says whether a method
differs more often; it takes the two as independent, which on the same questions is cautious.
"""

import json
import math
import random
import statistics

Z = 1.959964  # 95 %
WIDTH_UNKNOWN = 16  # idle rows where no file says how many were drafted


def wilson(hits, trials):
    """Wilson's score interval of a proportion.

    >>> [round(limit, 4) for limit in wilson(0, 10)]
    [0.0, 0.2775]
    """
    share, square = hits / trials, Z * Z / trials
    middle = share + square / 2
    half = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def newcombe(hits, trials, base_hits, base_trials):
    """95 % interval of hits / trials - base_hits / base_trials.

    Examples (a) and (h) of his table II:

    >>> [round(limit, 4) for limit in newcombe(56, 70, 48, 80)]
    [0.0524, 0.3339]
    >>> [round(limit, 4) for limit in newcombe(10, 10, 0, 10)]
    [0.6075, 1.0]
    """
    share, base = hits / trials, base_hits / base_trials
    (low, high), (base_low, base_high) = wilson(hits, trials), wilson(base_hits, base_trials)
    down = math.hypot(share - low, base_high - base)
    up = math.hypot(high - share, base - base_low)
    return share - base - down, share - base + up


def typical_width(path):
    """(median of the drafted nodes a step over the steps that drafted, whether it is recorded)."""
    drafted = []
    for line in path.read_bytes().split(b"\n"):
        if line.strip():
            for choice in json.loads(line).get("choices") or []:
                turns = choice.get("drafted")
                for turn in turns if isinstance(turns, list) else []:
                    steps = turn if isinstance(turn, list) else []
                    drafted += [n for n in steps if type(n) is int and n > 0]
    if not drafted:
        return WIDTH_UNKNOWN, False
    return max(1, round(statistics.median(drafted))), True


def inert_drafter(width):
    """A drafter of `width` rows that never match; 0 is the plain baseline."""
    import torch

    from model.common.contract.drafter import Draft
    from model.common.contract.sequence import EmptyDrafter

    class InertDrafter(EmptyDrafter):
        """A chain of inert rows."""

        max_nodes = width

        def start(self, prompt):
            size = (self.num_slots, width)
            self.draft = Draft(torch.full(size, -1, device=prompt.tokens.device))

    return InertDrafter() if width else EmptyDrafter()


def decode_question(target, drafter, subject, question_id, limit):
    """Ids of every turn of a question by greedy decoding."""
    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler

    turns, texts, answers = subject.turns[question_id], [], []
    stop = subject.prompter.stop_rules(target.model.generation_config)
    past = subject.history.get(question_id)
    for turn in range(len(turns)):
        prompt = subject.prompter.render(turns, (past or texts)[:turn])
        (done,) = generate(target, drafter, [prompt], Sampler(), [0], stop, limit)
        answers.append(done.output_ids)
        texts.append(subject.prompter.text(done.output_ids, stop))
    return answers


def run_control(target, subject, differing, compared, num_questions, width, seed):
    """Decode up to num_questions of the compared ones with and without idle rows.

    differing, compared: question ids; compared in the file's order. Returns a dict for the report.
    """
    chosen = sorted(random.Random(seed).sample(range(len(compared)), num_questions))
    chosen = [compared[i] for i in chosen]
    answers = subject.answers.questions
    plain, idle = inert_drafter(0), inert_drafter(width)
    control_differ = []
    for question_id in chosen:
        longest = max(n for choice in answers[question_id].choices for n in choice.new_tokens)
        limit = subject.limit or max(1, longest)
        sides = [
            decode_question(target, drafter, subject, question_id, limit)
            for drafter in (plain, idle)
        ]
        if sides[0] != sides[1]:
            control_differ.append(question_id)
    method_differ = [question_id for question_id in chosen if question_id in differing]
    low, high = newcombe(len(method_differ), len(chosen), len(control_differ), len(chosen))
    return {
        "questions": len(chosen),
        "width": width,
        "seed": seed,
        "method_differ": len(method_differ),
        "control_differ": len(control_differ),
        "control_differing": control_differ,
        "difference": (len(method_differ) - len(control_differ)) / len(chosen),
        "interval": [low, high],
        "interval_of": "Newcombe's hybrid score (method 10), 95 %",
        "significant": low > 0,
    }
