"""Conversations in progress, and earlier answers taken from another file."""

from __future__ import annotations

from pathlib import Path

from model.common.errors import BadInput, parse_json


def render(prompter, question: dict, answers: list[str]) -> list[int]:
    """Ids of the prompt for turn len(answers) of a question; no system text of its own is lost."""
    turns, system = question["turns"], question.get("system")
    ids = prompter.render(turns, answers, system)
    own = system and system.strip() and system != prompter.system
    if own and ids == prompter.render(turns, answers):
        raise BadInput(f"the template {prompter.name} has no place for a system message")
    return ids


def first_prompt(prompter, question: dict) -> list[int] | None:
    """Ids of a question's first prompt, None where its template refuses it: it will fail alone."""
    try:
        return render(prompter, question, [])
    except Exception:  # a template may raise anything
        return None


class Conversation:
    """One question being answered: its turns, the answers in later prompts, the results.

    index   which of the answers (--num-choices) to the question it is
    shares  of each turn that began, what records/energy/log.py keeps to know its energy by
    """

    def __init__(self, question: dict, history: list[str] | None, index: int = 0):
        self.question, self.history, self.index = question, history, index
        self.turns = question["turns"]
        self.texts, self.results, self.prompt_tokens, self.shares = [], [], [], []
        self.error: str | None = None

    @property
    def past(self) -> list[str]:
        """Answers to the turns so far: from --history where given, else the run's own."""
        return self.history[: len(self.texts)] if self.history else self.texts

    def seed(self, seed: int, turn: int) -> int:
        """Of the uniforms of one turn."""
        from model.common.loop.sampling import seed_of

        return seed_of(seed, self.question["question_id"], self.index, turn)

    def add(self, result, text: str) -> None:
        """Keep a decoded turn."""
        self.results.append(result)
        self.texts.append(text)


def read_history(path: str, questions: list[dict]) -> dict[int | str, list[str]]:
    """{question_id: answer texts} of another answer file, for every question of several turns."""
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--history {path}: {error}") from error
    history = {}
    for number, line in enumerate(lines, 1):
        try:
            answer = parse_json(line)
            if answer["choices"]:
                turns = answer["choices"][0]["turns"]
                if not isinstance(turns, list) or not all(isinstance(t, str) for t in turns):
                    raise ValueError("turns are no texts")
                history[answer["question_id"]] = turns
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"--history {path}:{number}: not an answer line") from error
    for question in questions:
        have = len(history.get(question["question_id"], []))
        if have < len(question["turns"]) - 1:
            raise BadInput(f"--history {path}: no answer to question {question['question_id']}")
    return history
