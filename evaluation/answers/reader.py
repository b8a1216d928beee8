"""Read answer files: one JSON line a question, each field checked as it is read.

Two writers are understood. This project's harness writes token ids, prefill and per-step times,
and a `.meta.json` beside the file; its counts are verified here (a turn's new_tokens is one token
of the prefill plus the sum of its accept_lengths). Spec-Bench's scripts write neither, and count
the prefill's token as a step; their files are read with a warning that says what is unchecked.
A question with a number that is not finite has failed; a half-written last line is ignored.
Answers of a server come in chunks, which are no steps: where nothing says what its steps
committed, its accept lengths and its number of steps are unknown.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.answers.checks import (
    check_counts,
    check_drafts,
    check_ids_counted,
    check_times,
    count_ids,
    failed_joules,
    parse_request,
)
from evaluation.answers.fields import Fields
from evaluation.answers.meta import AnswerError, find_field, meta_path, read_meta
from model.common.errors import parse_json

UNCATEGORIZED = "uncategorized"  # the name of no category in this project's files
HALF = "its half-written last line is ignored (the run was cut off)"
MT_BENCH_TOPICS = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)


@dataclass
class Choice:
    """One sampled answer to a question; lists are per turn [T] unless said otherwise."""

    index: int
    texts: list  # [T] str
    new_tokens: list  # [T] committed ids, end-of-sequence included
    wall_s: list  # [T] prefill + steps
    steps: list | None  # [T] target forwards after the prefill; None of a server that hides them
    accept_lengths: list | None  # flat over the turns, one a step
    output_ids: list | None  # [T][new_tokens]
    prompt_tokens: list | None
    finish_reason: list | None
    prefill_s: list | None  # [T] seconds after begin_s: the drafter has read the prompt, too
    stage_s: dict | None  # stage -> seconds, summed over all steps of all turns
    batch: list | None = None  # [T] id of the turn's batch, in files of fixed batches
    verify_s: list | None = None  # [T][steps]
    drafted: list | None = None  # [T][steps] candidates, without inert and probe rows
    depth: list | None = None  # [T][steps] longest path of the draft, in tokens
    recompiled: list | None = None  # [T] graphs compiled or captured within wall_s
    begin_s: list | None = None  # [T] Unix time at which the prefill began, one clock a machine
    first_s: list | None = None  # [T] seconds after it: the first token; prefill_s in older files
    step_end_s: list | None = None  # [T][steps] end of every step, in seconds after begin_s
    slot: list | None = None  # [T] the slot of the loop that decoded the turn
    energy_j: list | None = None  # [T] joules within wall_s
    chunk_end_s: list | None = None  # [T][chunks behind the first] seconds after begin_s
    chunk_tokens: list | None = None  # [T][chunks] tokens that came with each, the first included
    evidence: dict | None = None  # of a server's answer: where the accept lengths come from
    estimated: bool = False  # chunk_tokens are estimates, from the length of the chunks' texts

    @property
    def accepted(self):
        """(tokens committed by steps, steps) of all turns; None where nobody says.

        A server that says the steps of a request, but not what each one committed, is taken at
        that; a file of Spec-Bench without lengths is not.
        """
        if self.accept_lengths is not None:
            return sum(self.accept_lengths), len(self.accept_lengths)
        if self.chunk_tokens is None or self.steps is None:
            return None
        return sum(self.new_tokens) - len(self.new_tokens), sum(self.steps)

    @property
    def uncounted(self):
        """Turns with a text and new_tokens of 0, as some writers leave it in their baseline."""
        turns = enumerate(zip(self.texts, self.new_tokens))
        return [turn for turn, (text, tokens) in turns if text.strip() and not tokens]


@dataclass
class Question:
    """One line of an answer file; `choices` is empty where `error` says that it failed."""

    question_id: object
    category: str
    error: str | None
    choices: list
    request: dict | None = None  # of a load run: {"arrival_s", "sent_s"}, Unix times
    failed_s: float | None = None  # Unix time at which it failed, in a load run
    energy_j: float | None = None  # joules until it failed

    @property
    def task(self):
        """The reported category: the MT-Bench topics are one where they have several turns."""
        several = any(len(choice.texts) > 1 for choice in self.choices)
        return "mt_bench" if several and self.category in MT_BENCH_TOPICS else self.category


@dataclass
class AnswerFile:
    """A whole answer file, its questions by id in file order."""

    path: Path
    sha256: str
    model_id: str
    questions: dict
    meta: dict | None
    warnings: list = field(default_factory=list)

    @property
    def lossy(self):
        """Whether the method's acceptance rule may change the target's output."""
        return bool(self.meta and self.meta["lossy"])

    @property
    def meta_sha256(self):
        """Of the meta's bytes as they are now, None where there is no meta."""
        if self.meta is None:
            return None
        return hashlib.sha256(meta_path(self.path).read_bytes()).hexdigest()

    @property
    def is_share(self):
        """Whether it holds the pairs of a method's answers, which need not be all questions."""
        return bool(self.meta and self.meta.get("pairs_of") and self.meta["method"] == "vanilla")

    @property
    def twin(self):
        """'twin of mini at 7b' where the target was a small model at a large one's size, or ""."""
        size = find_field(self.meta, "scale_to")
        return f"twin of {find_field(self.meta, 'target')} at {size}" if size else ""

    @property
    def label(self):
        """The name to print; a lossy method and a twin are never named without saying so."""
        marks = ", ".join(filter(None, ("lossy" if self.lossy else "", self.twin)))
        return f"{self.model_id} ({marks})" if marks else self.model_id


def read_lines(path):
    """(content, [(line number, model_id, Question)], quirks) of the answer file at `path`.

    Every line is parsed by itself; what lines say together (an id twice, times of zero) is not
    judged here.
    """
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise AnswerError(f"{path}: a directory; name one .jsonl answer file") from None
    except OSError as error:
        raise AnswerError(f"{path}: {error.strerror}") from None
    rows, quirks = [], set()
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        record = parse_line(line, where, is_last=number == len(lines))
        if record is None:
            quirks.add("half")
            continue
        rows.append((number, record.get("model_id"), parse_question(record, where, quirks)))
    if not rows:
        raise AnswerError(f"{path}: no answers in it")
    return content, rows, quirks


def read_answers(path):
    """Read and check the answer file at `path` and the meta file beside it."""
    path = Path(path)
    content, rows, quirks = read_lines(path)
    questions, line_of = {}, {}
    for number, _, question in rows:
        question_id = question.question_id
        where = f"{path}: line {number}"
        if question_id in questions:
            first = line_of[question_id]
            raise AnswerError(f"{where}: question_id {question_id} stands on line {first} already")
        check_times(question, where)
        questions[question_id] = question
        line_of[question_id] = number
    meta = read_meta(path)
    model_id = one_model_id(path, [name for _, name, _ in rows], meta)
    digest = hashlib.sha256(content).hexdigest()
    warnings = [*warnings_for(path, meta, quirks), *disagreements(path, questions)]
    return AnswerFile(path, digest, model_id, questions, meta, warnings)


def check_ids(ours, theirs):
    """Refuse two AnswerFiles of which one has as texts the ids that the other has as numbers."""
    if not ours.questions.keys() & theirs.questions.keys():
        same = set(map(str, ours.questions)) & set(map(str, theirs.questions))
        if same:
            raise AnswerError(
                f"{ours.path} and {theirs.path}: question_ids are numbers in one and texts in the"
                f" other: {min(same)}"
            )


def one_model_id(path, model_ids, meta):
    """The model_id that all lines and the meta share; the file's stem where no line has one."""
    model_ids = [name for name in model_ids if name is not None]
    if not all(isinstance(name, str) for name in model_ids):
        raise AnswerError(f"{path}: a line's model_id is no text")
    names = set(model_ids)
    if meta is not None:
        names.add(meta["model_id"])
    if len(names) > 1:
        listed = ", ".join(sorted(map(str, names)))
        raise AnswerError(f"{path}: lines (or meta) of several model_ids in one file: {listed}")
    return str(names.pop()) if names else path.stem


def warnings_for(path, meta, quirks):
    """What could not be checked in this file, a line each."""
    found = []
    if "foreign" in quirks:
        found.append(
            f"{path}: not written by this project (no token ids, no prefill times): token counts"
            " are taken on trust and accept_lengths may count the prefill as a step"
        )
    if meta is None:
        found.append(
            f"{path}: no .meta.json beside it: target, prompts and settings cannot be checked"
        )
    if "half" in quirks:
        found.append(f"{path}: {HALF}")
    if "ids" in quirks:
        found.append(f"{path}: new_tokens is 0 in turns that have token ids: the ids are counted")
    if "idxs" in quirks:
        found.append(f"{path}: steps are read from 'idxs', which some writers count from 0")
    if "accept_lengths" in quirks:
        found.append(f"{path}: some questions have no accept_lengths: no mean accepted tokens")
    if "server" in quirks:
        found.append(f"{path}: a server's answers without token ids: its own counts are taken")
    if "estimated" in quirks:
        found.append(f"{path}: tokens of a chunk are estimated in some answers: no ITL a token")
    if "hidden" in quirks:
        found.append(f"{path}: the server's steps are unknown in some answers: no accept lengths")
    if "steps" in quirks:
        found.append(f"{path}: the number of accept_lengths differs from decoding_steps")
    return found


def disagreements(path, questions):
    """A line where two sources of a server's accept lengths do not agree."""
    choices = [choice for question in questions.values() for choice in question.choices]
    found = [c.evidence["disagree"] for c in choices if c.evidence and c.evidence.get("disagree")]
    if found:
        yield f"{path}: accept lengths of {len(found)} answers are unknown: {found[0]}"


def parse_line(line, where, is_last):
    """One JSON object from the bytes of a line; None for a half-written last one.

    One with a number that is not finite gets an `error`, where it has none.
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        if is_last:  # it has no newline: the run was cut off
            return None
        raise AnswerError(f"{where}: broken JSON: {error}") from None
    if not isinstance(record, dict):
        raise AnswerError(f"{where}: not a JSON object")
    odd = not_finite(record) if b"NaN" in line or b"Infinity" in line else None
    if odd and not record.get("error"):
        record["error"] = f"{odd} in the place of a number"
    return record


def not_finite(value):
    """The first NaN or infinity anywhere in a value of JSON, as JSON writes it, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else json.dumps(value)
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return None
    return next(filter(None, map(not_finite, inner)), None)


def category_of(record, where):
    """A line's category; UNCATEGORIZED where it has none or an empty one."""
    category = record.get("category")
    if not isinstance(category, str | None):
        raise AnswerError(f"{where}: category is no string")
    return category.strip() if category and category.strip() else UNCATEGORIZED


def parse_question(record, where, quirks):
    """A Question from a line's object; oddities of other writers are added to `quirks`."""
    question_id, category = record.get("question_id"), category_of(record, where)
    if type(question_id) not in (int, str):
        raise AnswerError(f"{where}: question_id is missing or neither a number nor a string")
    request, failed_s = parse_request(record, where)
    error = record.get("error")
    if error:
        reason = str(error).strip() or "failed"
        energy_j = failed_joules(record, where)
        return Question(question_id, category, reason, [], request, failed_s, energy_j)
    choices = record.get("choices")
    if not isinstance(choices, list) or not choices:
        raise AnswerError(f"{where}: question {question_id} has no choices and no error")
    parsed = [parse_choice(choice, number, where, quirks) for number, choice in enumerate(choices)]
    if len({choice.index for choice in parsed}) < len(parsed):
        raise AnswerError(f"{where}: question {question_id} has two choices of the same index")
    return Question(question_id, category, None, parsed, request)


def parse_choice(record, number, where, quirks):
    """A Choice from one entry of `choices`, its parts checked against each other."""
    if not isinstance(record, dict):
        raise AnswerError(f"{where}: choice {number} is not a JSON object")
    ours, chunked = record.get("output_ids") is not None, record.get("chunk_tokens") is not None
    texts = record.get("turns")
    if not isinstance(texts, list) or not texts or set(map(type, texts)) != {str}:
        raise AnswerError(f"{where}: choice {number}: turns is no list of answer texts")
    fields = Fields(record, f"{where}: choice {number}", len(texts))
    if not ours:
        quirks.add("server" if chunked else "foreign")
        quirks.update({"idxs"} if "decoding_steps" not in record else ())
    steps, accept_lengths, evidence = steps_of(fields, chunked, quirks)
    chunk_end_s, chunk_tokens = fields.chunks()
    choice = Choice(
        index=fields.index(number),
        texts=texts,
        new_tokens=fields.counts("new_tokens"),
        wall_s=fields.seconds("wall_time"),
        steps=steps,
        accept_lengths=accept_lengths,
        output_ids=fields.turns("output_ids"),
        prompt_tokens=fields.counts("prompt_tokens") if "prompt_tokens" in record else None,
        finish_reason=fields.labels("finish_reason"),
        prefill_s=fields.seconds("prefill_s") if "prefill_s" in record else None,
        stage_s=fields.stages(),
        batch=fields.labels("batch"),
        verify_s=fields.turns("verify_s"),
        drafted=fields.step_counts("drafted"),
        depth=fields.step_counts("depth"),
        recompiled=fields.counts("recompiled") if "recompiled" in record else None,
        begin_s=fields.seconds("begin_s") if "begin_s" in record else None,
        first_s=fields.first_tokens(),
        step_end_s=fields.step_ends("step_end_s"),
        slot=fields.counts("slot") if "slot" in record else None,
        energy_j=fields.amounts("energy_j"),
        chunk_end_s=chunk_end_s,
        chunk_tokens=chunk_tokens,
        evidence=evidence,
        estimated=record.get("chunk_tokens_estimated") is True,
    )
    check_choice(choice, ours, f"{where}: choice {number}", quirks)
    return choice


def steps_of(fields, chunked, quirks):
    """(steps [T], accept lengths, evidence) of a choice; chunked: of a server's answer.

    There the first two are None where there is no evidence, or witnesses disagree.
    """
    steps = fields.counts("decoding_steps" if "decoding_steps" in fields.record else "idxs")
    accept_lengths, evidence = fields.accept_lengths(), fields.evidence()
    if chunked and not (evidence and evidence.get("source") and not evidence.get("disagree")):
        steps = accept_lengths = None
        quirks.update(() if evidence and evidence.get("disagree") else {"hidden"})
    return steps, accept_lengths, evidence


def check_choice(choice, ours, where, quirks):
    """Hold a choice's counts to each other; ours: it has token ids."""
    chunked = choice.chunk_tokens is not None
    quirks.update({"estimated"} if choice.estimated else ())
    if ours:
        quirks.update(count_ids(choice))
    if choice.accept_lengths is not None if chunked else ours:
        check_counts(choice, where)
    elif not chunked and choice.accept_lengths is None:
        quirks.add("accept_lengths")
    elif not chunked and len(choice.accept_lengths) != sum(choice.steps):
        quirks.add("steps")
    check_drafts(choice, where)
    if ours:
        check_ids_counted(choice, where)
