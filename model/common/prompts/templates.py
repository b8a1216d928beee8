"""Conversations to train on: ShareGPT files as token ids with a mask over the answers, in batches.

Prompts are rendered by the class that renders them at inference. Everything is a function of the
file, the template and the seed, so that a place in the data is one number.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.common.errors import BadInput
from model.common.prompts.json_records import read_records
from model.common.prompts.question_forms import ROLES

NAMED = 10  # bad records that are printed


class Conversation(NamedTuple):
    """As many answers as turns; place is file:line, for messages.

    recorded, system: of a target's own answers, see recorded_of()
    """

    place: str
    turns: list[str]
    answers: list[str]
    recorded: list[tuple[list[int], int]] | None = None
    system: str | None = None


class Row(NamedTuple):
    """ids [t] int32; mask [t] bool: the token belongs to an answer, its end included."""

    ids: Tensor
    mask: Tensor


class Rejected:
    """What could not be used: the first records are printed, all are counted."""

    def __init__(self):
        self.count, self.first = 0, ""

    def add(self, place: str, reason: str) -> None:
        """Name one record."""
        message = f"{place}: {' '.join(reason.split())}"
        self.first = self.first or message
        self.count += 1
        if self.count <= NAMED:
            print(f"left out: {message}", flush=True)

    def close(self, path: str, num_left: int) -> None:
        """Print the count; with nothing left the first record's reason is bad input."""
        if not num_left:
            raise BadInput(self.first or f"{path}: no conversations")
        if self.count > NAMED:
            print(f"left out: {self.count} records of {path} in all", flush=True)


def read_conversations(path: str, rejected: Rejected) -> list[Conversation]:
    """Records {"conversations": [{"from": .., "value": ..}]} of a .json array or of JSON lines.

    Turns and answers have to alternate. Left out without a word: an answer before the first turn, a
    turn without an answer, and system messages, which prompts at inference do not have; those of
    a target's own answers (recorded_of) stay.
    """
    found = []
    for place, record in read_records(Path(path)):
        try:
            found.append(Conversation(place, *turns_of(record), *recorded_of(record)))
        except ValueError as error:
            rejected.add(place, str(error))
    return found


def turns_of(record) -> tuple[list[str], list[str]]:
    """Turns and answers of a record; ValueError says what is wrong with it."""
    if isinstance(record, ValueError):
        raise record
    messages = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(messages, list):
        raise ValueError('no list "conversations"')
    sides = {"user": [], "assistant": []}
    for number, message in enumerate(messages, 1):
        speaker = message.get("from") if isinstance(message, dict) else None
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        text = message.get("value") if isinstance(message, dict) else None
        if role is None:
            raise ValueError(f"message {number}: from {speaker!r} is no known speaker")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"message {number}: value is no text")
        if role == "system" or (role == "assistant" and not sides["user"]):
            continue
        if len(sides["user"]) - len(sides["assistant"]) != (role == "assistant"):
            raise ValueError(f"message {number}: two messages of one speaker in a row")
        sides[role].append(text.strip() if role == "assistant" else text)
    if not sides["assistant"]:
        raise ValueError("no turn with an answer")
    return sides["user"][: len(sides["assistant"])], sides["assistant"]


def recorded_of(record: dict) -> tuple[list[tuple[list[int], int]] | None, str | None]:
    """What model.common.training.answers adds to a record: (token_ids, prompt_tokens) of every
    answer, and the system text that the target read; (None, None) of others' records."""
    messages = record["conversations"]
    sides = [ROLES[message["from"]] for message in messages]
    answers = [m for m, side in zip(messages, sides) if side == "assistant"]
    if not any("token_ids" in message for message in answers):
        return None, None
    found = [(message.get("token_ids"), message.get("prompt_tokens")) for message in answers]
    for ids, length in found:
        whole = isinstance(ids, list) and ids and all(type(token) is int for token in ids)
        if not whole or type(length) is not int:
            raise ValueError("token_ids and prompt_tokens have to stand beside every answer")
    system = [message["value"] for message, side in zip(messages, sides) if side == "system"]
    return found, system[0] if system else None


def encode(prompter, conversation: Conversation, max_length: int, ends: frozenset[int]) -> Row:
    """Prompt ids as at inference, then the answer's, then its end; the mask marks every answer.

    Recorded ids are taken as they are: an answer that was cut at a limit has no end. Of a text, an
    answer has the space before it and the end after it that its rendering has; without an end
    there the last one gets EOS. A turn whose prompt does not begin with the turn before and its
    answer is left out, with all after it.
    ends: ids that end an answer.
    """
    turns, answers, system = conversation.turns, conversation.answers, conversation.system
    ids = prompter.render(turns[:1], [], system)
    spans = []
    for i, answer in enumerate(answers):
        begin = len(ids)
        if begin >= max_length:
            break
        following = prompter.render(turns[: i + 2], answers[: i + 1], system)
        own = following[begin:] if following[:begin] == ids else []
        if conversation.recorded:
            answer_ids, nests = _recorded_ids(prompter.tokenizer, conversation, i, begin, own)
        else:
            answer_ids, nests = _ended_ids(prompter.tokenizer, answer, own, ends)
        last = not nests or i + 1 == len(answers)
        if last and not conversation.recorded and not (answer_ids and answer_ids[-1] in ends):
            answer_ids = [*answer_ids, prompter.tokenizer.eos_token_id]
        spans.append((begin, begin + len(answer_ids)))
        ids = ids + answer_ids if last else following
        if last:
            break
    ids = ids[:max_length]
    mask = torch.zeros(len(ids), dtype=torch.bool)
    for begin, end in spans:
        mask[begin:end] = True
    return Row(torch.tensor(ids, dtype=torch.int32), mask)


def _recorded_ids(tokenizer, conversation, i: int, begin: int, rendered: list[int]):
    """As _ended_ids(), of answer i's recorded ids; they have to be this target's, to this prompt.

    begin: tokens of its prompt.
    """
    ids, length = conversation.recorded[i]
    if begin != length:
        raise BadInput(
            f"turn {i + 1}: a prompt of {begin} tokens, which had {length} when it was answered:"
            " another --template, --template-args or target"
        )
    if conversation.answers[i] not in tokenizer.decode(ids, skip_special_tokens=True):
        raise BadInput(f"turn {i + 1}: token_ids are not those of its text: another target's")
    return ids, rendered[: len(ids)] == ids


def _ended_ids(tokenizer, answer: str, rendered: list[int], ends) -> tuple[list[int], bool]:
    """An answer's ids, with the end that its rendering has, and whether that begins with them."""
    ids, nests = _answer_ids(tokenizer, answer, rendered)
    after = rendered[len(ids) : len(ids) + 1] if nests else []
    return ids + after if after and after[0] in ends else ids, nests


def _answer_ids(tokenizer, answer: str, rendered: list[int]) -> tuple[list[int], bool]:
    """An answer's ids and whether its rendering begins with them.

    Alone, or after a space where its rendering is more like that.
    """
    found, best = [], -1
    for text in (answer, " " + answer):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        same = next((i for i, (a, b) in enumerate(zip(ids, rendered)) if a != b), None)
        same = min(len(ids), len(rendered)) if same is None else same
        if same > best:
            found, best = ids, same
    return found, best == len(found)


class TrainingData:
    """Encoded conversations in batches of similar lengths, and a held-out share.

    train, held_out   batches: lists of rows
    num_tokens        of one pass over the training rows, padding not counted
    """

    def __init__(self, rows: list[Row], seed: int, batch_tokens: int, held_out: float):
        rows = list(rows)
        self.seed = seed
        random.Random(seed).shuffle(rows)
        num_held = math.ceil(held_out * len(rows)) if held_out else 0
        if num_held >= len(rows):
            raise BadInput(f"{len(rows)} conversations: nothing to train on beside --held-out")
        split = len(rows) - num_held
        self.num_conversations = (split, num_held)
        self.train = by_length(rows[:split], batch_tokens)
        self.held_out = by_length(rows[split:], batch_tokens)
        self.num_tokens = sum(map(batch_size, self.train))
        self._order: tuple[int, list[int]] = (-1, [])

    def index(self, number: int) -> int:
        """Which training batch is drawn as the number-th; every epoch has an order of its own.

        A batch holds the same rows in every epoch, so that its features can be kept.
        """
        epoch, place = divmod(number, len(self.train))
        if self._order[0] != epoch:
            order = list(range(len(self.train)))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    def tokens(self, index: int) -> int:
        """Tokens of a training batch, padding not counted."""
        return batch_size(self.train[index])

    def count_answers(self, vocab_size: int) -> Tensor:
        """How often each id stands in a training answer, [V] long: for draft vocabularies."""
        counts = torch.zeros(vocab_size, dtype=torch.long)
        for row in (row for batch in self.train for row in batch):
            counts += torch.bincount(row.ids[row.mask].long(), minlength=vocab_size)
        return counts


def load_data(args, prompter, ends: frozenset[int]) -> TrainingData:
    """Read, encode and split --data; see TrainingData."""
    rejected, rows = Rejected(), []
    for conversation in read_conversations(args.data, rejected):
        try:
            row = encode(prompter, conversation, args.max_length, ends)
        except BadInput as error:
            rejected.add(conversation.place, str(error))
            continue
        if row.mask.any():
            rows.append(row)
        else:
            rejected.add(conversation.place, f"no answer within {args.max_length} tokens")
    rejected.close(args.data, len(rows))
    return TrainingData(rows, args.seed, args.batch_tokens, args.held_out)


def batch_size(rows: list[Row]) -> int:
    """Tokens of a batch, padding not counted."""
    return sum(len(row.ids) for row in rows)


def by_length(rows: list, num_tokens: int) -> list[list]:
    """Split rows, shortest first, into batches of at most num_tokens padded tokens, or one row.

    A row is a tuple whose first item has its ids.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if not batches or (len(batches[-1]) + 1) * len(row[0]) > num_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def collate(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad on the right with 0 -> ids [B, T] long, mask [B, T] bool, lengths [B] long."""
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([row.ids for row in rows], batch_first=True).long()
    mask = pad_sequence([row.mask for row in rows], batch_first=True)
    return ids, mask, torch.tensor([len(row.ids) for row in rows])
