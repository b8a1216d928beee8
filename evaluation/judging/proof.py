"""--proof: answer the differing questions again in float32, by the method's own command.

In float32 rounding is four orders of magnitude below that of half precision, so an exact method
gives the baseline's ids. A rerun that is identical shows that the code is exact with these weights
and settings; it does not excuse a file whose gaps say otherwise, which then was not written by this
code or not left as it was written. A rerun that differs is a bug, but for a tie of the target in
float32, which --proof-dtype float64 settles. Method and vanilla share the target's code, so some
tokens of the rerun are held to transformers' own forward as well.
"""

import importlib
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.cli import reason_of
from evaluation.judging.subject import ROOT, TOKENIZERS_OWN

# what the rerun decides itself; everything else is as recorded
OWN = ("model_path", "model_id", "dtype", "answer_file", "overwrite", "question_file", "bench_name")
OWN += ("question_begin", "question_end", "question_ids", "categories", "limit_per_category")
OWN += ("num_runs", "paired", "num_gpus_total", "warmup", "history", "template", "device", "help")
OWN += ("trust_remote_code",)  # what a file says of its own run is no permission for this one
PROOF_DTYPES = ("float32", "float64")
OWN_TEXTS = 4  # of the rerun, the longest: their middle and last tokens


def method_parser(method, path):
    """The parser of a method's script. Raises AnswerError where there is none, or it is a server's,
    whose recorded command is not ours to run."""
    if method == "engine":
        raise AnswerError(f"{path}: --proof: a server's answers cannot be given again here")
    script = ROOT / "model" / method / f"inference_{method}.py"
    if not method.isidentifier() or not script.is_file():
        raise AnswerError(f"{path}: --proof: this project has no method {method!r} to run again")
    from model.common.args import make_parser

    module = importlib.import_module(f"model.{method}.inference_{method}")
    return make_parser(method, module.__doc__, module.add_args)


def recorded_flags(parser, arguments):
    """The command line that gives these arguments, without those of OWN."""
    import argparse

    flags = []
    for action in parser._actions:
        value = arguments.get(action.dest)
        if action.dest in OWN or action.dest not in arguments or value == action.default:
            continue
        name = action.option_strings[-1]
        if isinstance(action, argparse.BooleanOptionalAction):
            flags.append(action.option_strings[0] if value else name)
        elif action.nargs == 0:
            flags += [name] if value else []
        elif isinstance(value, list) and action.nargs:
            flags += [name, *map(str, value)]
        elif value is not None:  # with "=", since a text may begin with a dash
            several = value if isinstance(value, list) else [value]
            texts = [json.dumps(v) if isinstance(v, dict) else str(v) for v in several]
            flags += [f"{name}={text}" for text in texts]
    return flags


def proof_command(subject, args, method, arguments, question_ids, written):
    """The command that answers question_ids with recorded arguments into the file `written`."""
    from model.common.prompts.questions import join_ids

    parser = method_parser(method, subject.answers.path)
    model = Path(args.model_path)
    device = args.device if args.proof_dtype == "float32" else "cpu"
    command = [sys.executable, "-m", f"model.{method}.inference_{method}"]
    command += ["--model-path", str(model.resolve()) if model.exists() else args.model_path]
    command += ["--dtype", args.proof_dtype, "--device", device, "--warmup", "0", "--paired", "0"]
    command += ["--question-file", str(subject.question_path.resolve())]
    command += [f"--question-ids={join_ids(question_ids)}"]
    if subject.prompter.name != TOKENIZERS_OWN:
        command += ["--template", subject.prompter.name]
    if args.trust_remote_code:
        command += ["--trust-remote-code"]
    if subject.history:
        command += ["--history", str(Path(subject.history_path).resolve())]
    return [*command, "--answer-file", str(written), *recorded_flags(parser, arguments)]


def answers_of(command, path):
    """Run a command in the project's folder and read its answer file."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise AnswerError(f"{path}: --proof: {' '.join(command[1:3])}: {reason_of(done)}")
    return read_answers(command[command.index("--answer-file") + 1]).questions


def held_to_own(target, subject, questions):
    """(tokens held to transformers' own forward, the one that is furthest from its best or None).

    questions: of vanilla's rerun. Off is what rounding cannot do (noise.rounding_limits).
    """
    from evaluation.judging.noise import rounding_limits
    from evaluation.judging.readings import Text, own_logits

    texts, checked, off = [], 0, None
    for question in questions:
        choice = question.choices[0]
        prompt = subject.prompt(question.question_id, choice, 0)
        where = f"question {question.question_id} turn 0"
        text = Text(prompt, choice.output_ids[0], where, penalties=subject.penalties)
        texts += [text] if text.ids else []
    for text in sorted(texts, key=lambda text: text.size, reverse=True)[:OWN_TEXTS]:
        for position in sorted({len(text.ids) // 2, len(text.ids) - 1}):
            logits = text.scores(own_logits(target, text, position, 1), position)
            _, limit = rounding_limits(logits, target.dtype)
            gap = float(logits.max() - logits[0, text.ids[position]])
            checked += 1
            if not gap <= float(limit) and gap > (off or {"gap": 0})["gap"]:
                off = {"where": text.where, "position": position, "gap": gap}
    return checked, off


def run_proof(subject, args, question_ids, target_of):
    """Rerun the method and vanilla on question_ids; a dict for the report, None for no question.

    target_of(): the target in the rerun's dtype.
    """
    path, meta = subject.answers.path, subject.answers.meta
    if meta is None or "arguments" not in meta:
        raise AnswerError(f"{path}: --proof: no meta records the arguments to run again")
    if not question_ids:
        return None
    recorded = meta["arguments"]
    common = {name: value for name, value in recorded.items() if name not in meta["method_args"]}
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            proof_command(
                subject, args, method, arguments, question_ids, Path(folder) / f"{name}.jsonl"
            )
            for name, method, arguments in (
                ("method", meta["method"], recorded),
                ("baseline", "vanilla", common),
            )
        ]
        mine, base = (answers_of(command, path) for command in commands)
    differing = [i for i in question_ids if committed(mine[i]) != committed(base[i])]
    checked, off = 0, None
    if not differing:
        checked, off = held_to_own(target_of(), subject, [base[i] for i in question_ids])
    return {
        "dtype": args.proof_dtype,
        "questions": len(question_ids),
        "identical": not differing,
        "differing": differing,
        "own_checked": checked,
        "off": off,
        "command": shlex.join(["python", *commands[0][1:]]),
    }


def committed(question):
    """Ids of every choice and turn."""
    return [choice.output_ids for choice in question.choices]
