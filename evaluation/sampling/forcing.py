"""Teacher forcing: what the target itself says about every token of an answer file.

A turn's prompt is rebuilt as the harness rendered it (questions, template, earlier answers or the
history's), read in one prefill, and the recorded ids are read after it in blocks, so that row i of
a turn's logits scores its i-th output id. Nothing is drawn and no drafter is needed.

Importing it imports torch, so a tool imports it after its flags are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import AnswerFile
from evaluation.judging.flags import DTYPES
from evaluation.judging.readings import Text, check_text
from model.common.contract.drafter import Needs
from model.common.errors import BadInput
from model.common.load.requests import questions_of_run
from model.common.loop.ranking import finite_rows
from model.common.prompts.conversation import read_history, render
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.records import writer as record
from model.common.records.files import asked_hash, prompt_hash
from model.common.remote_code import trust
from model.common.target.loading import check_model_path, load_target, model_folder
from model.common.target.model import Target

PROMPT_FLAGS = ("system_prompt", "template_args")
BLOCK_ROWS = 256  # rows of logits at a time: 256 x 128k x 4 bytes = 131 MB


@contextmanager
def refusals_of_tools():
    """Turn the model code's BadInput into the tools' AnswerError."""
    try:
        yield
    except BadInput as error:
        raise AnswerError(str(error)) from error


@dataclass
class Asked:
    """What an answer file's target was asked and how it is to be loaded.

    questions: {question_id: question}; history: {question_id: answer texts}, {} = the run's own.
    flags: of its prompts and ends, as Prompter.of() reads them
    """

    model_path: str
    dtype: str
    template: str | None
    questions: dict
    history: dict
    scale_to: str | None = None  # of a twin
    flags: dict = field(default_factory=dict)


@dataclass
class ForcedTurn:
    """A turn and the logits that score it. `blocks` can be walked once, before the next turn.

    blocks  yields [rows, V], in order; together len(output_ids) rows, in the target's dtype
    """

    question_id: object
    choice: int
    turn: int
    where: str  # what messages call it
    prompt_ids: list
    output_ids: list
    blocks: Iterator


def find_asked(
    answers: AnswerFile,
    model_path=None,
    dtype=None,
    template=None,
    bench_name=None,
    question_file=None,
) -> Asked:
    """What the meta beside `answers` says, a flag that is given (not None) before it.

    Refused in one line: a setting that neither has, other weights, questions or first prompts than
    the meta's hashes say.
    """
    meta = answers.meta or {}
    said = meta.get("arguments") or {}
    model_path = model_path or _path(said.get("model_path"))
    dtype = dtype or said.get("dtype")
    for flag, value in (("--model-path", model_path), ("--dtype", dtype)):
        if value is None:
            raise AnswerError(f"{answers.path}: no meta says its {flag[2:]}; give {flag}")
    if dtype not in DTYPES:
        raise AnswerError(f"{answers.path}: dtype {dtype}: one of {', '.join(DTYPES)} is needed")
    if question_file is None and bench_name is None:
        question_file = _path(said.get("sharegpt_dir") or said.get("question_file"))
        bench_name = said.get("bench_name")
    if question_file is None and bench_name is None:
        raise AnswerError(
            f"{answers.path}: no meta says its questions; give --bench-name or --question-file"
        )
    path = Path(question_file or record.ROOT / "data" / bench_name / "question.jsonl")
    with refusals_of_tools():
        check_model_path(model_path)
        asked = questions_of_run(answers.meta, path, model_path)
        questions = {question["question_id"]: question for question in asked}
        missing = [i for i in answers.questions if i not in questions]
        if missing:
            raise AnswerError(f"{path}: no question {missing[0]}, which {answers.path} answers")
        asked = [questions[i] for i in answers.questions]
        history_path = _path(said.get("history"))
        history = read_history(history_path, asked) if history_path else {}
    template = template or said.get("template")
    flags = {name: said.get(name) for name in PROMPT_FLAGS}
    found = Asked(model_path, dtype, template, questions, history, said.get("scale_to"), flags)
    _check_hashes(answers, found, asked, history_path)
    return found


def _path(said: str | None) -> str | None:
    """A path of a meta: from here, or from the project's folder, where runs usually start."""
    if said and not Path(said).exists() and (record.ROOT / said).exists():
        return str(record.ROOT / said)
    return said


def _check_hashes(answers, found: Asked, asked: list, history_path) -> None:
    """Hold weights, questions and history to the meta's hashes."""
    shared = (answers.meta or {}).get("shared", {})
    hashes = {"weights_sha256": lambda: record.sha256_weights(model_folder(found.model_path))}
    if history_path:
        hashes["history_sha256"] = lambda: record.sha256_file(Path(history_path))
    for name, compute in hashes.items():
        if shared.get(name) is not None and compute() != shared[name]:
            what = {"weights_sha256": found.model_path, "history_sha256": history_path}[name]
            raise AnswerError(f"{answers.path}: {what} is not what it was made of ({name})")
    for question, (then, _) in _recorded(answers, asked):
        if asked_hash(question) != then:
            raise AnswerError(
                f"{answers.path}: question {question['question_id']} is another one in the question"
                " file (questions_sha256)"
            )


def _recorded(answers, asked: list):
    """[(question, its two hashes of files.fingerprints)], as far as the meta has them."""
    known = (answers.meta or {}).get("questions") or {}
    named = ((question, known.get(str(question["question_id"]))) for question in asked)
    return [(question, hashes.split(" ")) for question, hashes in named if hashes]


def load_asked(found: Asked, device: str = "auto", trusted=False) -> tuple[Target, Prompter]:
    """(target, prompter) of an Asked, the target eager; trusted: code of the checkpoint may run."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    trust(trusted)
    with refusals_of_tools():
        prompter = Prompter.of(load_tokenizer(found.model_path), found.template, found.flags)
        target = load_target(
            found.model_path, found.dtype, device, "eager", scale_to=found.scale_to
        )
        return target, prompter


def forced_turns(
    answers: AnswerFile,
    asked: Asked,
    target: Target,
    prompter: Prompter,
    block_rows: int = BLOCK_ROWS,
) -> Iterator[ForcedTurn]:
    """Every turn of the questions that did not fail, in file order.

    Refused in one line: a file without ids, an id outside the vocabulary, first prompts of another
    hash or a prompt of another length than recorded, a turn that the context cannot hold.
    """
    _check_first_prompts(answers, asked, prompter)
    for question in answers.questions.values():
        for choice in question.choices:
            name = f"{answers.path}: question {question.question_id} choice {choice.index}"
            if choice.output_ids is None:
                raise AnswerError(f"{name}: no output_ids; only token ids can be scored")
            own = asked.questions[question.question_id]
            turns = own["turns"]
            past = asked.history.get(question.question_id) or choice.texts
            if len(choice.output_ids) > len(turns):
                raise AnswerError(f"{name}: more turns than its question has ({len(turns)})")
            for turn, output_ids in enumerate(choice.output_ids):
                with refusals_of_tools():
                    prompt_ids = render(prompter, own, past[:turn])
                recorded = choice.prompt_tokens and choice.prompt_tokens[turn]
                where = f"{name} turn {turn}"
                _check_turn(where, prompt_ids, output_ids, recorded, target)
                blocks = logit_blocks(target, prompt_ids, output_ids, block_rows)
                yield ForcedTurn(
                    question.question_id,
                    choice.index,
                    turn,
                    where,
                    prompt_ids,
                    output_ids,
                    finite_blocks(blocks, where),
                )


def _check_first_prompts(answers, asked: Asked, prompter) -> None:
    """Hold the first prompts' ids to the meta's hashes."""
    for question, (_, then) in _recorded(answers, [asked.questions[i] for i in answers.questions]):
        if prompt_hash(prompter, question) != then:
            raise AnswerError(
                f"{answers.path}: question {question['question_id']} has another first prompt here"
                " (prompts_sha256): another template or tokenizer"
            )


def _check_turn(where: str, prompt_ids, output_ids, recorded, target) -> None:
    """Refuse a turn that cannot be scored as it was made."""
    if recorded is not None and recorded != len(prompt_ids):
        raise AnswerError(
            f"{where}: a prompt of {len(prompt_ids)} tokens, the file says {recorded}:"
            " another question, template or tokenizer"
        )
    if not prompt_ids or not output_ids:
        raise AnswerError(f"{where}: an empty prompt or answer")
    check_text(target, Text(prompt_ids, output_ids, where))


def finite_blocks(blocks: Iterator[torch.Tensor], where: str) -> Iterator[torch.Tensor]:
    """The same, refused where they say nothing of the next token."""
    for logits in blocks:
        if not finite_rows(logits).all():
            raise AnswerError(f"{where}: the target's logits are not finite")
        yield logits


def logit_blocks(
    target: Target, prompt_ids: list, output_ids: list, block_rows: int = BLOCK_ROWS
) -> Iterator[torch.Tensor]:
    """[rows, V] after the prompt and after each output id but the last; one prefill."""
    total = len(prompt_ids) + len(output_ids)
    ids = torch.tensor([prompt_ids], device=target.device)
    target.reserve(1, total)
    yield target.prefill([0], ids, [len(prompt_ids)], Needs()).logits
    for begin in range(0, len(output_ids) - 1, block_rows):
        read = output_ids[begin : min(begin + block_rows, len(output_ids) - 1)]
        rows = torch.tensor([read], device=target.device)
        with torch.inference_mode():
            logits, _ = target.read(rows, None, None, len(prompt_ids) + begin)
            target.cache.advance(len(read))
        yield logits[0]
