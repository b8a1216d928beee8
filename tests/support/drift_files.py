"""Answer files of a baseline, a method and its pairs whose machine moved by known factors."""

from answer_samples import compared, line, meta, run_tool, write

TASKS = ("qa", "rag")
TIMES = ("wall_time", "prefill_s")
STAGES = ("draft_s", "verify_s", "commit_s")
START = 1.7e9


def timed(number, factor, model_id, begin=None, accepted=1):
    """Question `number`, eight tokens in steps of `accepted` ones, every time times `factor`."""
    steps = 8 // accepted
    record = line(number, TASKS[number % 2], [([accepted] * steps, [0.25] * steps)], model_id)
    (choice,) = record["choices"]
    for name in TIMES:
        choice[name] = [factor * (1 + number / 50) * s for s in choice[name]]
    for name in STAGES:
        choice[name] = [[factor * s for s in turn] for turn in choice[name]]
    if begin is not None:
        choice |= {"begin_s": [START + begin]}
    return record


class Files:
    """A baseline, a method that takes half its time, and the method's pairs.

    pairs: {question: factor of the baseline's times}
    """

    def __init__(self, folder, pairs, questions=16, **shared):
        self.folder, ids = folder, range(1, questions + 1)
        self.base = write(
            folder / "base.jsonl", [timed(i, 1, "base") for i in ids], self.meta("base", **shared)
        )
        self.method = self.add("m", pairs, questions, **shared)

    def meta(self, model_id, method="vanilla", **shared):
        return meta(model_id, method, **shared)

    def add(self, name, pairs, questions=16, **shared):
        """A method's file and, unless `pairs` is None, its pairs."""
        lines = [timed(i, 0.5, name, 10 * i) for i in range(1, questions + 1)]
        path = write(self.folder / f"{name}.jsonl", lines, self.meta(name, "pld", **shared))
        if pairs is not None:
            own = f"{name}-paired-baseline"
            lines = [timed(i, factor, own, 10 * i + 5) for i, factor in pairs.items()]
            known = self.meta(own, **shared) | {"pairs_of": name}
            write(self.folder / f"{own}.jsonl", lines, known)
        return path

    def result(self, **options):
        return compared(self.method, self.base, **options)

    @property
    def drift(self):
        return self.result()["drift"]


def steady(factor, every=2, questions=16):
    return {i: factor for i in range(1, questions + 1, every)}


def moved(found):
    return [one["moved"] for one in found["parts"]]


def speed(*args):
    return run_tool("evaluation/speed.py", *args)
