"""What the acceptance head is trained on: prompts from public files, and the examples made of them.

An example is a JSON line: id (of the record in the data, from 0), prompt and continuation (text),
prefix (the prompt's ids), tokens (the target's answer X), draft (the draft model's token Y_i after
X_<i), p_acc (the probability that Y_i is accepted). The published form, one array whose lists are
strings, is read as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from model.common.errors import BadInput, parse_json
from model.common.prompts.json_records import read_records
from model.common.prompts.templates import Rejected, turns_of

LISTS = {"prefix": int, "tokens": int, "draft": int, "p_acc": float}


class Prompt(NamedTuple):
    """number: of the record in the file, from 0; place is file:line, for messages."""

    number: int
    place: str
    text: str


class Example(NamedTuple):
    """tokens, draft and p_acc are equally long; place is file:line."""

    place: str
    prefix: list[int]
    tokens: list[int]
    draft: list[int]
    p_acc: list[float]


def read_prompts(path: str, rejected: Rejected) -> list[Prompt]:
    """Prompts of an Alpaca, HumanEval, GSM8K or ShareGPT file, .json or .jsonl.

    Of a conversation the first turn is taken. A record that is none of these is rejected.
    """
    prompts = []
    for number, (place, record) in enumerate(read_records(Path(path))):
        try:
            prompts.append(Prompt(number, place, prompt_of(record)))
        except ValueError as error:
            rejected.add(place, str(error))
    return prompts


def prompt_of(record) -> str:
    """The text that a record asks with; ValueError says what is wrong with it.

    >>> prompt_of({"instruction": "Add.", "input": "1, 2", "output": "3"})
    'Add.\\nInput: 1, 2'
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    if "conversations" in record:
        return turns_of(record)[0][0]
    if "instruction" in record:  # Alpaca
        text, more = _text(record, "instruction"), record.get("input") or ""
        if not isinstance(more, str):
            raise ValueError("input is no text")
        return f"{text}\nInput: {more}" if more.strip() else text
    if "task_id" in record:  # HumanEval
        return f"Write the rest of this Python function.\n\n{_text(record, 'prompt')}"
    if "question" in record:  # GSM8K
        return f"{_text(record, 'question')}\n\nLet's think step by step."
    raise ValueError("neither conversations, instruction, task_id nor question in it")


def _text(record: dict, field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} is no text")
    return value


def read_examples(path: str, rejected: Rejected) -> Iterator[Example]:
    """Examples of prepare.py's lines or of the published array; broken ones are rejected."""
    for place, record in read_records(Path(path)):
        try:
            yield Example(place, *_lists(record))
        except ValueError as error:
            rejected.add(place, str(error))


def _lists(record) -> list[list]:
    """prefix, tokens, draft and p_acc of a record; ValueError says what is wrong with them."""
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    found = []
    for name, kind in LISTS.items():
        values = record.get(name)
        try:
            values = parse_json(values) if isinstance(values, str) else values
        except ValueError as error:
            raise ValueError(f"{name} is no JSON list") from error
        allowed = (int,) if kind is int else (int, float)
        if not isinstance(values, list) or any(type(value) not in allowed for value in values):
            raise ValueError(f"{name} is no list of numbers")
        low, high = (0, 2**31 - 1) if kind is int else (0, 1)
        if any(not low <= value <= high for value in values):
            raise ValueError(f"{name} is not between {low} and {high}")
        found.append(values)
    prefix, *equal = found
    if len({len(values) for values in equal}) > 1 or not equal[0]:
        raise ValueError("tokens, draft and p_acc are not equally long, or empty")
    if not prefix:
        raise ValueError("prefix is empty")
    return found


class ExampleFile:
    """Appends examples; a killed run loses at most the batch in flight.

    settings stand in NAME.meta.json: a file of other settings is refused unless overwrite is given.
    """

    def __init__(self, path: str, settings: dict, overwrite: bool = False):
        self.path = Path(path)
        beside = self.path.with_name(self.path.stem + ".meta.json")
        self.done: set[int] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not overwrite:
                self._resume(beside, settings)
            else:
                self.path.write_text("", encoding="utf-8")
            beside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error

    def _resume(self, beside: Path, settings: dict) -> None:
        try:
            found = parse_json(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise BadInput(f"{self.path}: exists without {beside.name}; --overwrite replaces it")
        for name in sorted(found.keys() | settings.keys()):
            if found.get(name) != settings.get(name):
                raise BadInput(f"{self.path}: of another {name}; --overwrite replaces it")
        whole = []
        *lines, _ = self.path.read_bytes().split(b"\n")  # what follows the last newline is cut
        for line in lines:
            try:
                self.done.add(parse_json(line)["id"])
            except (ValueError, KeyError, TypeError) as error:
                place = f"{self.path}:{len(whole) + 1}"
                raise BadInput(f"{place}: broken line; --overwrite starts anew") from error
            whole.append(line + b"\n")
        part = self.path.with_name(self.path.name + ".part")
        part.write_bytes(b"".join(whole))
        os.replace(part, self.path)

    def add(self, examples: list[dict]) -> None:
        """Append lines and have them on disk before returning."""
        with self.path.open("a", encoding="utf-8") as out:
            out.write(
                "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
            )
            out.flush()
            os.fsync(out.fileno())
        self.done.update(example["id"] for example in examples)
