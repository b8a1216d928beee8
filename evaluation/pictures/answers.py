"""The answer viewer's content: a packed piece a question, which the page unpacks when it is opened.

A question is {"id", "category", "asked": words or none, "failed": {file: error}, "turns": [...]}; a
turn is {"choice", "turn", "answers": [{"pieces", "ids", "text"}], "by": [[file, answer, lengths,
drafted, depth, finish]]}. Equal answers of several files stand once, which is what makes twenty
methods fit. `pieces` has a text a token; without a tokenizer it is none, and `text` the whole.
"""

import base64
import json
import zlib

from evaluation.pictures.steps import turns_of
from model.common.visible import visible

BESIDE = 60  # bytes of a question's id and category beside its packed content
MOST_ASKED = 1200  # characters of a question's words that are kept


def packed(value):
    """base64 of the raw deflate of a value's JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    content = deflate.compress(text.encode("utf-8", "replace")) + deflate.flush()
    return base64.b64encode(content).decode("ascii")


def question_content(question_id, files, asked=None, pieces=None):
    """What the viewer shows of a question in {file's number: AnswerFile}.

    asked: the question's turns as words; pieces: Pieces of the target's tokenizer.
    """
    failed, turns, category = {}, {}, None
    for number, answers in files.items():
        question = answers.questions.get(question_id)
        if question is None:
            continue
        category = category or question.category
        if question.error:
            failed[number] = visible(question.error)
        for turn in turns_of(question):
            place = turn.choice, turn.turn
            into = turns.setdefault(place, {"answers": [], "by": []})
            into["by"].append([number, add_answer(into["answers"], turn, pieces), *steps(turn)])
    return {
        "id": question_id,
        "category": category,
        "asked": [cut(visible(text)) for text in asked or ()],
        "failed": failed,
        "turns": [
            {"choice": choice, "turn": turn, **content}
            for (choice, turn), content in sorted(turns.items())
        ],
    }


def steps(turn):
    """The per-step facts of a Turn, and how it ended."""
    return turn.lengths, turn.drafted, turn.depth, turn.finish


def add_answer(answers, turn, pieces):
    """The place of a Turn's answer among the distinct ones, where it is put if it is new."""
    known = {"ids": turn.ids, "text": visible(turn.text)}
    for place, answer in enumerate(answers):
        if answer["ids"] == known["ids"] and (turn.ids is not None or answer == known):
            return place
    if turn.ids is not None and pieces is not None:
        known = {"ids": turn.ids, "pieces": [visible(piece) for piece in pieces.of(turn.ids)]}
    answers.append(known)
    return len(answers) - 1


def cut(text):
    """A long question's beginning; the dots say that it goes on."""
    return text if len(text) <= MOST_ASKED else text[:MOST_ASKED] + " ..."


def order(files, first):
    """Question ids of some AnswerFiles: those of `first`, then one of each category in turn."""
    by_category = {}
    for answers in files:
        for question_id, question in answers.questions.items():
            by_category.setdefault(question.category, {}).setdefault(question_id)
    lists = [list(ids) for ids in by_category.values()]
    longest = max(map(len, lists), default=0)
    spread = [ids[i] for i in range(longest) for ids in lists if i < len(ids)]
    return list(dict.fromkeys([*first, *spread]))


def fit(contents, room):
    """The first of some (id, packed question) that fit into `room` bytes, and what they take.

    One that alone is too large for what is left is passed over.
    """
    kept, used = [], 0
    for question_id, text in contents:
        size = len(text) + BESIDE
        if used + size <= room:
            kept.append((question_id, text))
            used += size
    return kept, used
