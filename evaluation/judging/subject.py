"""What an answer file was asked: its prompts rebuilt as the harness renders them, and checked."""

from dataclasses import dataclass, field
from pathlib import Path

from evaluation import cli
from evaluation.answers.meta import AnswerError, covers

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS_OWN = "tokenizer"  # the template's name in a meta where the tokenizer brings its own


@dataclass
class Subject:
    """An answer file with its settings and everything its prompts are made from.

    questions  {question_id: question} of the question file
    limit      new tokens a turn at most, None where nothing says it
    history    {question_id: answer texts} of --history, empty where a run kept its own answers
    prompter   prompts.Prompter of the target's tokenizer and the file's template
    penalties  loop.penalties.Penalties that its tokens were chosen under
    tokenizer  for texts without ids; None where the file has ids
    """

    answers: object
    dtype: str
    limit: int | None
    question_path: Path
    questions: dict
    history: dict
    prompter: object
    penalties: object
    history_path: object = None
    tokenizer: object = None
    notes: list = field(default_factory=list)

    def prompt(self, question_id, choice, turn):
        """Ids of the prompt of one turn; its length must be the recorded one."""
        from model.common.prompts.conversation import render

        question = self.questions.get(question_id)
        path = self.answers.path
        if question is None or turn >= len(question["turns"]):
            what = "question" if question is None else f"turn {turn} of question"
            raise AnswerError(f"{path}: no {what} {question_id} in {self.question_path}")
        past = self.history.get(question_id) or choice.texts
        ids = render(self.prompter, question, past[:turn])
        recorded = choice.prompt_tokens and choice.prompt_tokens[turn]
        if recorded is not None and recorded != len(ids):
            raise AnswerError(
                f"{path}: question {question_id} turn {turn}: prompt_tokens is {recorded}, the"
                f" prompt rebuilt from {self.question_path} has {len(ids)}: another target,"
                " template or question file"
            )
        return ids

    def ids(self, choice, turn):
        """The committed ids of a turn, or those that its text is tokenised to."""
        if choice.output_ids is not None:
            return choice.output_ids[turn]
        if self.tokenizer is None:
            raise AnswerError(
                f"{self.answers.path}: no token ids in it; --tokenizer-path names the tokenizer"
                " that its texts are to be tokenised with"
            )
        return self.tokenizer(choice.texts[turn], add_special_tokens=False).input_ids


def setting(answers, args, name, needed=True):
    """A setting from the meta or the command line, which may not contradict each other."""
    shared = answers.meta["shared"] if answers.meta else {}
    found, given = shared.get(name), getattr(args, name)
    flag = f"--{name.replace('_', '-')}"
    if found is not None and given is not None and found != given:
        raise AnswerError(f"{answers.path}: {flag} {given}, but its meta says {found}")
    value = given if found is None else found
    if value is None and needed:
        raise AnswerError(f"{answers.path}: no meta says its {name}: give {flag}")
    return value


def question_file(answers, args):
    """The question file, or ShareGPT's folder: the command line's, else the recorded one."""
    arguments = (answers.meta or {}).get("arguments", {})
    if args.question_file:
        return Path(args.question_file)
    recorded = arguments.get("sharegpt_dir") or arguments.get("question_file")
    if not args.bench_name and recorded:
        return Path(recorded)
    bench = setting(answers, args, "bench_name", needed=False)
    if bench is None:
        raise AnswerError(
            f"{answers.path}: no meta says its questions: give --question-file or --bench-name"
        )
    return ROOT / "data" / bench / "question.jsonl"


def read_subject(answers, args, base):
    """The Subject of an AnswerFile; refuses in one line what was not made from the same parts.

    base: the baseline's AnswerFile, which a recorded history may be. Raises AnswerError, BadInput.
    """
    from model.common.load.requests import questions_of_run
    from model.common.loop.penalties import Penalties
    from model.common.prompts.prompter import Prompter, load_tokenizer

    dtype = setting(answers, args, "dtype")
    template = setting(answers, args, "template")
    check_weights(answers, args)
    path = question_file(answers, args)
    questions = questions_of_run(answers.meta, path, args.model_path)
    asked = answers.meta["shared"] if answers.meta else {}
    template = None if template == TOKENIZERS_OWN else template
    prompter = Prompter.of(load_tokenizer(args.model_path), template, asked)
    check_prompts(answers, args, questions, prompter, path)
    history_path, history = read_past(answers, args, base, questions)
    subject = Subject(
        answers=answers,
        dtype=dtype,
        limit=setting(answers, args, "max_new_tokens", needed=False),
        question_path=path,
        questions={question["question_id"]: question for question in questions},
        history=history,
        prompter=prompter,
        penalties=Penalties.of(asked),
        history_path=history_path,
    )
    choices = [choice for question in answers.questions.values() for choice in question.choices]
    if any(choice.output_ids is None for choice in choices):
        if args.tokenizer_path:
            subject.tokenizer = cli.load_tokenizer(args.tokenizer_path)
        subject.notes.append(
            "no token ids: texts re-tokenised, which may give other ids than were committed; a gap"
            " counts as a bug only where no tokenisation of the text could have been committed"
        )
    if any(choice.prompt_tokens is None for choice in choices):
        subject.notes.append("no prompt_tokens: the rebuilt prompts could not be checked")
    if subject.limit is None:
        subject.notes.append("no --max-new-tokens: where answers end could not be checked")
    return subject


def compare_hash(answers, args, name, rebuilt, what):
    """Refuse a file whose recorded hash is another one, unless --allow names it."""
    recorded = (answers.meta or {"shared": {}})["shared"].get(name)
    if recorded in (None, rebuilt) or any(covers(allowed, name) for allowed in args.allow):
        return
    raise AnswerError(
        f"{answers.path}: {name} is {str(recorded)[:12]}..., that of {what} {rebuilt[:12]}..."
    )


def check_weights(answers, args):
    """Hold --model-path to the hashes of the file's own target."""
    from model.common.records import writer as record
    from model.common.target.loading import check_model_path, model_folder

    check_model_path(args.model_path)
    if answers.meta is None:
        return
    folder = model_folder(args.model_path)
    what = f"--model-path {args.model_path}"
    config = record.sha256_config(folder)
    compare_hash(answers, args, "config_sha256", config, what)
    compare_hash(answers, args, "weights_sha256", record.sha256_weights(folder), what)


def check_prompts(answers, args, questions, prompter, path):
    """Hold the questions and their first prompts to the recorded hashes (files.fingerprints)."""
    from model.common.records.files import fingerprints
    from model.common.records.meta import question_totals

    recorded = (answers.meta or {}).get("questions")
    if recorded is None:
        return
    known = {str(question["question_id"]): question for question in questions}
    lost = [name for name in recorded if name not in known]
    if lost:
        raise AnswerError(f"{answers.path}: no question {lost[0]} in {path}")
    totals = question_totals(fingerprints(prompter, [known[name] for name in recorded]))
    compare_hash(answers, args, "questions_sha256", totals["questions_sha256"], path)
    what = f"the prompts rebuilt from {path} with {args.model_path}'s tokenizer"
    compare_hash(answers, args, "prompts_sha256", totals["prompts_sha256"], what)


def read_past(answers, args, base, questions):
    """(file, {question_id: answer texts}) that later turns saw; (None, {}) = the file's own."""
    from model.common.prompts.conversation import read_history
    from model.common.records.writer import sha256_file

    meta = answers.meta or {"shared": {}}
    digest = meta["shared"].get("history_sha256")
    path = args.history or meta.get("arguments", {}).get("history")
    if digest is None and (answers.meta is not None or path is None):
        if args.history and answers.meta is not None:
            raise AnswerError(f"{answers.path}: --history given, but its meta says there was none")
        return None, {}
    if args.history is None and digest == base.sha256:
        path = base.path
    if path is None or not Path(path).is_file():
        raise AnswerError(f"{answers.path}: its --history {path} is not there; --history names it")
    if digest is not None and sha256_file(Path(path)) != digest:
        raise AnswerError(f"{answers.path}: history_sha256 is not that of {path}; give --history")
    several = [q for q in questions if q["question_id"] in answers.questions]
    return path, read_history(str(path), several)
