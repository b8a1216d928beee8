"""--proof: answer the differing questions again in float32, by the method's own command.

In float32 rounding is four orders of magnitude below that of half precision, so an exact method
gives the baseline's ids. A rerun that is identical shows that the code is exact with these weights
and settings; it does not excuse a file whose gaps say otherwise, which then was not written by this
code or not left as it was written. A rerun that differs is a bug, but for a tie of the target in
float32, which --proof-dtype float64 settles.
"""

import importlib
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.judging.subject import ROOT, TOKENIZERS_OWN

# what the rerun decides itself; everything else is as recorded
OWN = ("model_path", "model_id", "dtype", "answer_file", "overwrite", "question_file", "bench_name")
OWN += ("question_begin", "question_end", "question_ids", "categories", "limit_per_category")
OWN += ("num_runs", "paired", "num_gpus_total", "warmup", "history", "template", "device", "help")
PROOF_DTYPES = ("float32", "float64")


def method_parser(method, path):
    """The parser of a method's script, None where there is no such script."""
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
        elif isinstance(value, list):
            flags += [name, *map(str, value)]
        elif value is not None:
            flags += [name, str(value)]
    return flags


def proof_command(subject, args, method, arguments, question_ids, written):
    """The command that answers question_ids with recorded arguments into the file `written`."""
    parser = method_parser(method, subject.answers.path)
    model = Path(args.model_path)
    device = args.device if args.proof_dtype == "float32" else "cpu"
    command = [sys.executable, "-m", f"model.{method}.inference_{method}"]
    command += ["--model-path", str(model.resolve()) if model.exists() else args.model_path]
    command += ["--dtype", args.proof_dtype, "--device", device, "--warmup", "0"]
    command += ["--question-file", str(subject.question_path.resolve())]
    command += ["--question-ids", ",".join(map(str, question_ids))]
    if subject.prompter.name != TOKENIZERS_OWN:
        command += ["--template", subject.prompter.name]
    if subject.history:
        command += ["--history", str(Path(subject.history_path).resolve())]
    return [*command, "--answer-file", str(written), *recorded_flags(parser, arguments)]


def answers_of(command, path):
    """Run a command in the project's folder and read its answer file."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise AnswerError(f"{path}: --proof: {' '.join(command[1:3])}: {reason[-1]}")
    return read_answers(command[command.index("--answer-file") + 1]).questions


def run_proof(subject, args, question_ids):
    """Rerun the method and vanilla on question_ids; a dict for the report, None for no question."""
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
    return {
        "dtype": args.proof_dtype,
        "questions": len(question_ids),
        "identical": not differing,
        "differing": differing,
        "command": shlex.join(["python", *commands[0][1:]]),
    }


def committed(question):
    """Ids of every choice and turn."""
    return [choice.output_ids for choice in question.choices]
