"""The places of a Group's methods: those that cannot be told from the fastest of a place share it.

Against one baseline, two methods are told apart by their own speeds, as speed.py --file-path FIRST
--base-path OTHER compares them, widened by the drift between the two runs. Against each method's
own pairs they are told apart by their speedups, which no drift is in:

    (speedup of the first over its pairs) / (speedup of the other over its pairs)

over the questions that all four have. A resample draws its questions for all four at once.
"""

from evaluation.speedup import drift, metrics
from evaluation.speedup.comparison import tasks_of, with_intervals
from evaluation.speedup.pairing import pair_questions


class Ranking:
    """Which files of a Group are told apart; a comparison of two is made once.

    pairs: {number: AnswerFile of the baseline beside a file}, None where all have one baseline.
    """

    def __init__(self, group, settings, pairs=None):
        self.group, self.settings, self.pairs = group, settings, pairs
        self.drifts, self.known = {}, {}

    def ranked(self, rows, task):
        """[[numbers]] of a task's methods, fastest first; those of one list are not told apart."""

        def speedup(row):
            return row["tasks"][task]["speedup"]["value"] or 0.0

        places = []
        for one in sorted((r for r in rows if task in r["tasks"]), key=speedup, reverse=True):
            number = one["file"]
            if places and not self.told_apart(places[-1][0], number, task):
                places[-1].append(number)
            else:
                places.append([number])
        return places

    def told_apart(self, first, number, task):
        """Whether the first of two files is faster beyond the interval of their ratio."""
        if (first, number, task) not in self.known:
            ratio = self.ratio_of_speeds if self.pairs is None else self.ratio_of_speedups
            entry = ratio(first, number, task)
            apart = entry is not None and entry["low"] is not None and entry["low"] > 1
            self.known[first, number, task] = apart
        return self.known[first, number, task]

    def ratio_of_speeds(self, first, number, task):
        """{"value", "low", "high"} of the first file's tokens/s over the other's."""
        method, base = (self.group.files[i] for i in (first, number))
        if (first, number) not in self.drifts:
            self.drifts[first, number] = drift.measure(method, base)
        pairs = pair_questions(method, base, self.settings.common).pairs
        sides = map(metrics.question_columns, zip(*members_of(task, pairs)))
        entry = self.interval(metrics.wall_ratios, *sides)
        drift.widen(entry, self.drifts[first, number])
        return entry

    def ratio_of_speedups(self, first, number, task):
        """{"value", "low", "high"} of the first file's speedup over the other's, each over its own
        pairs; None where no question of the task is in all four files.
        """
        sides = [self.pairs_by_id(i, task) for i in (first, number)]
        ids = [question_id for question_id in sides[0] if question_id in sides[1]]
        if not ids:
            return None
        (ours, our_base), (theirs, their_base) = (
            map(metrics.question_columns, zip(*(side[i] for i in ids))) for side in sides
        )

        def ratios(method, base, mean=metrics.plain_mean):
            speedup = metrics.wall_ratios(method, our_base, mean)["mean_ratio"]
            return {
                "mean_ratio": speedup / metrics.wall_ratios(base, their_base, mean)["mean_ratio"]
            }

        return self.interval(ratios, ours, theirs)

    def pairs_by_id(self, number, task):
        """{question_id: (question, its pair)} of a file's questions of a task."""
        pairs = pair_questions(
            self.group.files[number], self.pairs[number], self.settings.common
        ).pairs
        return {ours.question_id: (ours, theirs) for ours, theirs in members_of(task, pairs)}

    def interval(self, ratios, method, base):
        """The bootstrap's {"value", "low", "high"} of the mean ratio of two Columns."""
        settings = self.settings
        found = with_intervals(ratios, method, base, settings.resamples, settings.seed)
        return found["mean_ratio"]


def members_of(task, pairs):
    """The pairs of a task's questions; of "overall" all."""
    return next((members for name, _, members in tasks_of(pairs) if name == task), [])
