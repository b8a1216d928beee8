"""Records of question files as they are published: which texts are asked, under which id.

data/README.md lists the forms with a line each. Of a conversation the user's messages are the
turns, each of which is answered; the answers that stand in the file are left out.
"""

from __future__ import annotations

import json

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
ROLES |= {"chatgpt": "assistant", "bard": "assistant", "bing": "assistant"}
ROLES |= {"system": "system", "developer": "system"}
UNCATEGORIZED = "uncategorized"
IDS = ("question_id", "task_id", "id")
# what SPEED-Bench publishes in the place of texts that its own script has to fetch
PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"


def to_question(record, number: int) -> dict:
    """{question_id, category, turns} and, where it has one, {system} of a record.

    number: its place in the file from 0, the id of a record without one. ValueError says what
    is wrong with it.
    """
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError("a question is a JSON object, with question_id, category and turns")
    system, turns, category = _asked(record)
    question = {
        "question_id": _id(record, number),
        "category": _category(record.get("category")) or category,
        "turns": turns,
    }
    if system is not None:
        question["system"] = system
    try:
        json.dumps(question, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not Unicode text: {error.reason}") from error
    return question


def _id(record: dict, number: int) -> int | str:
    name = next((name for name in IDS if record.get(name) is not None), None)
    found = number if name is None else record[name]
    if type(found) not in (int, str) or found == "":
        raise ValueError(f"{name} {found!r}: a question_id is a whole number or a text")
    return found


def _category(value) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"category {value!r} is no text")
    return value.strip() if value and value.strip() else None


def _asked(record: dict) -> tuple[str | None, list[str], str]:
    """(system text or None, turns, category of records of this form)."""
    turns, system = record.get("turns"), record.get("system")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        if not isinstance(system, str | None):
            raise ValueError(f"system {system!r} is no text")
        return system, turns, UNCATEGORIZED
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
        return *turns_of(turns), UNCATEGORIZED
    if turns is not None:
        raise ValueError("turns is no list of texts or of messages")
    for name, category in (("messages", UNCATEGORIZED), ("conversations", "sharegpt")):
        if name in record:
            return *turns_of(record[name]), category
    if isinstance(record.get("prompt"), str):
        return None, [record["prompt"]], "humaneval" if "task_id" in record else UNCATEGORIZED
    if isinstance(record.get("instruction"), str):
        texts = [record["instruction"], record.get("input") or ""]
        return None, ["\n\n".join(filter(None, texts))], "alpaca"
    if isinstance(record.get("question"), str):
        known = "####" in str(record.get("answer"))
        return None, [record["question"]], "gsm8k" if known else UNCATEGORIZED
    raise ValueError("a question needs turns, messages, conversations, prompt or question")


def turns_of(messages) -> tuple[str | None, list[str]]:
    """(system text or None, the user's texts) of messages {role, content} or {from, value}."""
    if not isinstance(messages, list):
        raise ValueError("its messages are no list")
    system, turns = None, []
    for number, message in enumerate(messages, 1):
        message = message if isinstance(message, dict) else {}
        speaker = message.get("role", message.get("from"))
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise ValueError(f"message {number}: from {speaker!r}, who is no known speaker")
        if role == "assistant":
            continue
        text = _text(message.get("content", message.get("value")))
        if text is None:
            raise ValueError(f"message {number}: its content is no text")
        if role == "user":
            turns.append(text)
        elif turns or system is not None:
            raise ValueError(f"message {number}: a system message that is not the first")
        else:
            system = text
    if not turns:
        raise ValueError("no message of a user")
    return system, turns


def _text(content) -> str | None:
    """A message's text: itself, or the joined text parts of OpenAI's form; else None."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    return content if isinstance(content, str) else None
