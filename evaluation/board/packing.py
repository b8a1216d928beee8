"""An answer file as zip archives of less than 1 MB each, from which its very bytes come back.

An archive holds, compressed by LZMA,

lines.jsonl  the lines, in which a list of numbers a step has given way to {"packed": its lengths}
NAME.i8      all values of such a list over all lines: whole numbers of 8 bytes, lowest first; the
             lowest bytes of all numbers stand first, then the next ones: half as long, compressed

Times are ticks of 1e-7 s, to which the harness rounds them. Of ends of steps the differences are
kept, without the step's draft, verify and commit: what is left is small and nearly constant. A list
that this does not give back exactly stays in its line.
"""

import io
import json
import math
import zipfile
from itertools import accumulate

from evaluation.answers.meta import AnswerError
from model.common.errors import parse_json

COUNTS = ("output_ids", "accept_lengths", "drafted", "depth", "chunk_tokens")
PHASES = ("draft_s", "verify_s", "commit_s")
ENDS = ("step_end_s", "chunk_end_s")  # last: they are kept as differences, without the phases
TICKS = 10_000_000  # a second
MOST_BYTES = 1_000_000  # of an archive
GROWTH = 1.1  # parts are together larger than a whole, and one is larger than another
MOST_UNPACKED = 400_000_000  # of its contents: more is no answer file
LINES = "lines.jsonl"
EPOCH = (1980, 1, 1, 0, 0, 0)  # a member's date, so that the same file gives the same archive


def pack(content, most_bytes=MOST_BYTES):
    """The archives [bytes] of an answer file's content; as many parts as keep below `most_bytes`.

    Raises AnswerError where the content is not what unpack() gives back.
    """
    lines = [line for line in content.split(b"\n") if line]
    parts = 1
    while True:
        ends = [len(lines) * part // parts for part in range(parts + 1)]
        archives = [pack_part(lines[begin:end]) for begin, end in zip(ends, ends[1:])]
        if all(len(archive) < most_bytes for archive in archives):
            break
        if parts >= len(lines):
            raise AnswerError("a question alone has more than the largest archive can hold")
        needed = math.ceil(GROWTH * sum(map(len, archives)) / most_bytes)
        parts = min(max(parts + 1, needed), len(lines))
    if unpack(archives) != content:
        raise AnswerError("its lines are not as this project writes them: not stored")
    return archives


def pack_part(lines):
    """One archive of some lines of an answer file."""
    import numpy as np

    columns, kept = {}, []
    for line in lines:
        try:
            record = parse_json(line)
            choices = record.get("choices") or []
            for choice in choices:
                take_out(choice, columns)
        except (ValueError, AttributeError) as error:
            raise AnswerError(f"a line is no answer: {error}") from None
        kept.append(json.dumps(record, ensure_ascii=False))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        add(archive, LINES, "".join(f"{line}\n" for line in kept).encode())
        for name, values in columns.items():
            planes = np.array(values, "<i8").view("u1").reshape(-1, 8).T
            add(archive, f"{name}.i8", planes.tobytes())
    return buffer.getvalue()


def add(archive, name, content):
    """Write a member whose bytes depend on its content alone."""
    archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_LZMA)


def take_out(choice, columns):
    """Move the per-step lists of a choice to the ends of `columns`, {name: [values]}."""
    found = {}
    for name in (*COUNTS, *PHASES, *ENDS):
        turns = choice.get(name)
        if not isinstance(turns, list):
            continue
        shape = [len(turn) for turn in turns] if nested(turns) else len(turns)
        lists = turns if nested(turns) else [turns]
        values = lists if name in COUNTS else ticks_of(lists)
        if values is None or any(type(value) is not int for part in values for value in part):
            continue
        found[name] = shape, values
    for name, (shape, values) in found.items():
        if name in ENDS:
            parts = phases_of(shape, found)
            values = [
                [end - before - spent for before, end, spent in zip([0, *turn], turn, phases)]
                for turn, phases in zip(values, parts)
            ]
        choice[name] = {"packed": shape}
        columns.setdefault(name, []).extend(value for turn in values for value in turn)


def nested(turns):
    """Whether a field has a list a turn."""
    return all(isinstance(turn, list) for turn in turns)


def ticks_of(turns):
    """[T][steps] seconds as whole ticks, None where these do not give them back."""
    if not all(type(value) is float and abs(value) < 1e8 for turn in turns for value in turn):
        return None
    ticks = [[round(value * TICKS) for value in turn] for turn in turns]
    return ticks if all(seconds(a) == b for a, b in zip(ticks, turns)) else None


def seconds(ticks):
    """A list of ticks in seconds: the nearest floats, as rounding to seven digits gives them."""
    return [tick / TICKS for tick in ticks]


def phases_of(shape, found):
    """[T][steps] ticks of a step's phases together; zeros where they are not known.

    found: {name: (shape, ticks)}
    """
    turns = shape if isinstance(shape, list) else [shape]
    known = [values for name, (own, values) in found.items() if name in PHASES and own == shape]
    zeros = [[0] * steps for steps in turns]
    return [[sum(step) for step in zip(*turn)] for turn in zip(zeros, *known)]


def unpack(archives):
    """The content of the answer file that pack() put into these archives."""
    return b"".join(map(unpack_part, archives))


def unpack_part(archive):
    """The lines of one archive. Raises AnswerError where it is none."""
    import numpy as np

    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            if sum(member.file_size for member in opened.infolist()) > MOST_UNPACKED:
                raise AnswerError("an archive of more than any answer file holds")
            members = {name: opened.read(name) for name in opened.namelist()}
        lines = members.pop(LINES).decode().split("\n")
        columns = {
            name.removesuffix(".i8"): iter(
                np.frombuffer(planes, "u1").reshape(8, -1).T.copy().view("<i8").ravel().tolist()
            )
            for name, planes in members.items()
        }
        records = [parse_json(line) for line in lines if line]
        for record in records:
            for choice in record.get("choices") or []:
                put_back(choice, columns)
    except AnswerError:
        raise
    except Exception as error:  # a damaged archive fails in as many ways as it has bytes
        raise AnswerError(f"no archive of an answer file: {type(error).__name__}") from None
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def put_back(choice, columns):
    """Replace every {"packed": lengths} of a choice by the next values of its column."""
    found = {}
    for name in (*COUNTS, *PHASES, *ENDS):
        value = choice.get(name)
        if not isinstance(value, dict):
            continue
        shape = value["packed"]
        lengths = shape if isinstance(shape, list) else [shape]
        values = [[next(columns[name]) for _ in range(length)] for length in lengths]
        if name in ENDS:
            phases = phases_of(shape, found)
            values = [
                list(accumulate(map(sum, zip(turn, spent)))) for turn, spent in zip(values, phases)
            ]
        found[name] = shape, values
        told = values if name in COUNTS else list(map(seconds, values))
        choice[name] = told if isinstance(shape, list) else told[0]
