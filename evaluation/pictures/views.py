"""A group of files against one baseline: every number of the page and the figures, as speed.py.

Each row is what comparison.compare() says of a file, for all questions and for each task. Methods
are ranked by speedup, and a method that cannot be told from the fastest above it shares its place
(ranking.py says how two of them are told apart).
"""

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.equal import compare_files
from evaluation.pictures.files import other_runtime
from evaluation.pictures.ranking import Ranking
from evaluation.speedup import drift, metrics
from evaluation.speedup.comparison import compare, tasks_of
from evaluation.speedup.pairing import pair_questions
from evaluation.speedup.step_profile import profile

PAIRED = "paired"  # as a baseline: what each method's run decoded beside every answer
MOST_DIFFERENCES = 40  # of a file, that the page lists
SHOWN = 110  # characters of a continuation
BEFORE = 40  # characters of what both have before it


class Settings:
    """How files are compared: the flags of speed.py that matter here."""

    def __init__(self, resamples=10000, seed=0, allow=(), common=False):
        self.resamples, self.seed, self.allow, self.common = resamples, seed, list(allow), common

    def allowed(self, method, base):
        """Fields that may differ between two files: those of --allow, and the runtime."""
        return [*self.allow, *other_runtime(method, base)]


def views(group, settings):
    """{baseline's number, or PAIRED: view} of a Group, the one that the page opens with first."""
    found, ranking = {}, Ranking(group, settings)
    for number in group.baselines:
        bases = dict.fromkeys(range(len(group.files)), group.files[number])
        found[number] = view(group, bases, settings, ranking)
    pairs = dict(own_pairs(group))
    if pairs:
        found[PAIRED] = view(group, pairs, settings, Ranking(group, settings, pairs))
    return found


def own_pairs(group):
    """(number, AnswerFile of the baseline beside it) of the files of a run with --paired 1."""
    for number, answers in enumerate(group.files):
        path = drift.pairs_path(answers.path)
        if number not in group.baselines and path.is_file():
            pairs = read_answers(path)
            if all(i in pairs.questions for i in answers.questions):
                yield number, pairs


def view(group, bases, settings, ranking):
    """{"rows", "base", "ranked", "not_compared"} of a Group's files against {number: baseline}."""
    rows, refused, base = [], [], None
    for number, theirs in bases.items():
        answers = group.files[number]
        try:
            found = row(answers, theirs, settings)
        except AnswerError as error:
            refused.append({"file": number, "reason": str(error)})
            continue
        if answers is theirs:
            base = {"file": number, **found}
        else:
            rows.append({"file": number, **found})
    shown = tasks_in([*rows, *([base] if base else [])])
    return {
        "rows": rows,
        "base": base,
        "tasks": shown,
        "ranked": {task: ranking.ranked(rows, task) for task, _ in shown},
        "not_compared": refused,
    }


def tasks_in(rows):
    """[(task, name)] of some rows, in the order of the first, "overall" last."""
    names = {task: one["name"] for row in rows for task, one in row["tasks"].items()}
    return sorted(names.items(), key=lambda item: item[0] == "overall")


def row(answers, base, settings):
    """What is shown of one file against its baseline."""
    allow = settings.allowed(answers, base)
    result = compare(
        answers, base, settings.resamples, settings.seed, allow=allow, common=settings.common
    )
    tasks = {one["task"]: task_numbers(one) for one in result["tasks"]}
    pairs = pair_questions(answers, base, settings.common).pairs
    for task, _, members in tasks_of(pairs):
        ours, theirs = zip(*members)
        sides = metrics.question_columns(ours), metrics.question_columns(theirs)
        identity = metrics.time_identity(*sides)
        tasks[task] |= {"identity": identity, "profile": profile(identity, ours, theirs)}
    return {
        "tasks": tasks,
        "drift": {name: value for name, value in result["drift"].items() if name != "moves"},
        "moves": result["drift"]["moves"],
        "roofline": result["roofline"],
        "throughput": result["throughput"],
        "notes": [*result["notes"], *(f"differs in {d['field']}" for d in result["allowed"])],
        "recompiled": result["method"]["recompiled_turns"],
        "verdict": verdict(answers, base, settings) if answers is not base else None,
    }


def task_numbers(task):
    """The numbers of a task's row in a report of speed.py that the page shows."""
    accepted, decode, energy = task["mean_accepted"], task["decode_speedup"], task["energy"]
    return {
        "name": task["name"],
        "questions": task["questions"],
        "tokens_per_s": task["tokens_per_s"],
        "base_tokens_per_s": task["base_tokens_per_s"],
        "accepted": accepted and accepted["over_steps"],
        "speedup": task["speedup"]["mean_ratio"],
        "decode": decode and decode["mean_ratio"],
        "joules": energy and energy["joules_per_token"],
        "base_joules": energy and energy["base_joules_per_token"],
        "energy": energy and energy["ratio"] and energy["ratio"]["total_ratio"],
    }


def verdict(answers, base, settings):
    """What equal.py says of a file, its first differences with both continuations."""
    try:
        found = compare_files(base, answers, settings.allow, None)
    except AnswerError as error:
        return {"refused": str(error)}
    differences = found["differences"][:MOST_DIFFERENCES]
    return {
        "equal": found["equal"],
        "questions": found["questions"],
        "differing": len({d["question_id"] for d in found["differences"] if d["kind"] != "error"}),
        "differences": [difference(one, answers, base) for one in differences],
        "more": len(found["differences"]) - len(differences),
        "notes": found["notes"],
    }


def difference(found, answers, base):
    """A record of equal.py with what both answers say from there on."""
    kept = ("question_id", "category", "kind", "choice", "turn", "position", "base", "other")
    shown = {name: found[name] for name in kept}
    if found["kind"] not in ("tokens", "text"):
        return shown
    texts = [
        next(c for c in side.questions[found["question_id"]].choices if c.index == found["choice"])
        for side in (base, answers)
    ]
    theirs, ours = (choice.texts[found["turn"]] for choice in texts)
    pairs = enumerate(zip(theirs, ours))
    place = next((i for i, (a, b) in pairs if a != b), min(len(theirs), len(ours)))
    return shown | {
        "before": theirs[max(0, place - BEFORE) : place],
        "base_text": theirs[place : place + SHOWN],
        "other_text": ours[place : place + SHOWN],
    }
