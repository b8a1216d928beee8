"""Which questions a bench has, kept in data/leaderboard/BENCH/questions.json, and whether a run
was asked them.

    {"bench", "sha256" (of the question file), "questions": {id: "HASH TURNS CATEGORY"}}

The hash is that of a meta's `questions`. The set is made once, from
data/BENCH/question.jsonl; where that file is there, it is held to the set again.
"""

import argparse
from collections import Counter

from evaluation.answers.meta import AnswerError, find_field
from evaluation.board import store
from model.common.errors import parse_json

NAMED = 3  # questions named in a line
# of a category that a row has: from fewer an interval is a guess, and a few can be picked for speed
LEAST = 8


def set_path(meta, root):
    """Where the set of a run's bench stands."""
    return root / store.safe(find_field(meta, "bench_name")) / "questions.json"


def question_file(bench):
    """Where a bench's questions are, if they are there."""
    return store.FOLDER.parent / bench / "question.jsonl"


def make_set(bench):
    """A bench's set from its question file. Raises AnswerError where that is not there."""
    from model.common.errors import BadInput
    from model.common.prompts.questions import read_questions
    from model.common.records.files import asked_hash

    path = question_file(bench)
    try:
        questions = read_questions(path)
    except BadInput as error:
        raise AnswerError(f"{error}: it says which questions are the bench's") from None
    kept = {
        str(q["question_id"]): f"{asked_hash(q)} {len(q['turns'])} {q['category']}"
        for q in questions
    }
    return {"bench": bench, "sha256": store.sha256(store.read_bytes(path)), "questions": kept}


def read_set(meta, root):
    """The kept set of a run's bench, its questions parsed(); None where there is none."""
    path = set_path(meta, root)
    if not path.is_file():
        return None
    try:
        found = parse_json(path.read_bytes())
        return found | {"questions": {i: parsed(q) for i, q in found["questions"].items()}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnswerError(f"{path}: no set of questions: {error!r}") from None


def parsed(text):
    """(hash, turns, category) of a kept question."""
    digest, turns, category = text.split(" ", 2)
    return digest, int(turns), category


def set_problems(root):
    """Sets that are none, or not those of the question files that are there, a line each."""
    for path in sorted(root.glob("*/questions.json")):
        try:
            kept = parse_json(path.read_bytes())
            bench = kept["bench"]
        except (ValueError, KeyError, TypeError) as error:
            yield f"{path}: no set of questions: {error!r}"
            continue
        if question_file(bench).is_file() and kept != make_set(bench):
            yield f"{path}: not the questions of {question_file(bench)}"


def problems(answers, kept):
    """Why the questions of an AnswerFile are not the bench's, or not those that its meta says.

    kept: {id: (hash, turns, category)} of the bench
    """
    meta = answers.meta
    asked = {name: both.split(" ") for name, both in (meta.get("questions") or {}).items()}
    answered = set(map(str, answers.questions))
    found = []
    other = [i for i, (digest, *_) in asked.items() if kept.get(i, [None])[0] != digest]
    if other:
        found.append(f"{named(other)} not of the bench's question set")
    if answers.is_share and answered < asked.keys():
        pass  # pairs are a share of the method's questions
    elif answered != asked.keys():
        found.append(f"{named(answered ^ asked.keys())} asked and not answered, or the reverse")
    totals = {
        f"{name}_sha256": store.sha256(
            "".join(f"{i} {both[place]}\n" for i, both in asked.items()).encode()
        )
        for place, name in enumerate(("questions", "prompts"))
    }
    found += [
        f"{k} is not that of its questions" for k, v in totals.items() if meta["shared"][k] != v
    ]
    return found + ([] if found else selection_problems(meta, kept))


def selection_problems(meta, kept):
    """Where a meta's questions are too few, or are not those that its selection chooses."""
    from model.common.errors import BadInput
    from model.common.prompts.questions import select

    if meta["selection"]["question_ids"]:
        return ["hand-picked questions (--question-ids)"]
    questions = [
        {"question_id": i, "category": category, "turns": [""] * turns}
        for i, (_, turns, category) in kept.items()
    ]
    try:
        chosen = select(questions, argparse.Namespace(**meta["selection"]))
    except BadInput as error:
        return [f"its selection: {error}"]
    if [q["question_id"] for q in chosen] != list(meta["questions"]):
        return [f"{len(meta['questions'])} questions, its selection chooses {len(chosen)} others"]
    return few_problems(chosen, questions)


def few_problems(chosen, questions):
    """A line where a category has fewer than LEAST of the bench's questions, but not all."""
    from model.common.prompts.questions import group_of

    asked, there = (Counter(map(group_of, part)) for part in (chosen, questions))
    few = [
        f"{number} of {there[name]} {name}"
        for name, number in asked.items()
        if number < min(LEAST, there[name])
    ]
    return [f"too few questions (below {LEAST} of a category): {', '.join(few)}"] if few else []


def named(ids):
    """'question 3', '5 questions (3, 4, 7, ...)'."""
    ids = sorted(ids, key=lambda i: (len(str(i)), str(i)))
    listed = ", ".join(map(str, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
    return f"question {listed}" if len(ids) == 1 else f"{len(ids)} questions ({listed})"


def prompt_problems(meta, seen):
    """Where a question has another prompt than in a row before it, of the same target.

    seen: {(weights, template, ...): {question id: hash}}, filled in.
    """
    names = ("weights_sha256", "config_sha256", "template", "system_prompt", "template_args")
    known = seen.setdefault(str([meta["shared"].get(name) for name in names]), {})
    prompts = {name: tuple(both.split(" ")) for name, both in meta["questions"].items()}
    other = [
        name for name, both in prompts.items() if known.setdefault(both[0], both[1]) != both[1]
    ]
    return [f"{named(other)} with another prompt than in another row"] if other else []
