"""What the benchmarks share: mini models, questions, drafters of command lines, rounds, tables."""

import argparse
import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
MINI = ROOT / "data" / "mini_models"
TARGET = str(MINI / "target")
FOLDERS = {path.parent.name for path in ROOT.glob("model/*/inference_*.py")}
METHODS = sorted(FOLDERS - {"engine"})  # a server's answers are no method's
COLUMN = 11  # width of a table's columns


def methods(text: str) -> list[str]:
    """Argument type: methods separated by commas."""
    names = text.split(",")
    for name in names:
        if name not in METHODS:
            known = ", ".join(METHODS)
            raise argparse.ArgumentTypeError(f"no method {name}; there are: {known}")
    return names


def make_parser(doc: str, **defaults):
    """A Parser with those of the shared flags that have a default: questions, rounds, ..."""
    from model.common.args import DTYPES, RUNTIMES, Parser, at_least

    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {
        "model_path": {"help": "target: model directory or hub id"},
        "methods": {"type": methods, "help": "comma list"},
        "questions": {"type": at_least(1), "help": "of the mini bench, categories in turn"},
        "max_new_tokens": {"type": at_least(2), "help": "per question (tokens)"},
        "rounds": {"type": at_least(1), "help": "timed rounds after one that is not"},
        "num_threads": {"type": at_least(1), "help": "CPU threads (default: PyTorch's)"},
        "dtype": {"choices": DTYPES, "help": "target's precision"},
        "device": {"help": "auto, cpu, cuda or cuda:N"},
        "runtime": {"choices": RUNTIMES, "help": "of steps"},
        "output": {"help": "write the figures there as JSON"},
    }
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **known[name])
    return parser


def read_bench(model_path: str, num: int, question_file: str | None = None):
    """(prompter, ids of the prompts) of so many questions, the categories in turn."""
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import read_questions

    prompter = Prompter(load_tokenizer(model_path))
    path = Path(question_file or ROOT / "data/mini_bench/question.jsonl")
    questions = spread(read_questions(path), num)
    return prompter, [list(prompter.render(question["turns"], [])) for question in questions]


def spread(questions: list[dict], num: int) -> list[dict]:
    """`num` questions, the categories in turn, so that any first few are mixed."""
    from model.common.errors import BadInput
    from model.common.prompts.questions import group_of

    groups: dict[str, list] = {}
    for question in questions:
        groups.setdefault(group_of(question), []).append(question)
    depth = max(map(len, groups.values()))
    mixed = [g[i] for i in range(depth) for g in groups.values() if i < len(g)]
    if num > len(mixed):
        raise BadInput(f"--questions {num}: the bench has {len(mixed)}")
    return mixed[:num]


def build_script(method: str, argv: list, target):
    """The drafter of a method's command line, whose default weights fit the mini target."""
    from model.common.args import make_parser

    script = importlib.import_module(f"model.{method}.inference_{method}")
    parser = make_parser(method, script.__doc__, script.add_args)
    return script.build(parser.parse_args([str(part) for part in argv]), target)


def answer(target, drafter, stop, ids: list[int], limit: int):
    """The Turn of one prompt, greedy."""
    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler

    return generate(target, drafter, [ids], Sampler(), [0], stop, limit)[0]


def warm_up(target, drafter, stop, prompts, limit: int, num_slots: int = 1) -> None:
    """Answers and forwards in which the runtime meets every shape of a drafter."""
    from model.common.loop.decode import Loop
    from model.common.loop.sampling import Sampler
    from model.common.loop.source import Prompts, Request

    capacity = max(map(len, prompts)) + limit
    loop = Loop(target, drafter, Sampler(), stop, num_slots, capacity)
    loop.run(Prompts([Request(prompts[0], min(24, limit)) for _ in range(2 * num_slots)]))
    for shown in target.rehearse(drafter, prompts[0]):
        loop.run(Prompts([Request(shown, 8)]))


def run_rounds(contenders: list, num: int) -> None:
    """round() of every contender, there and back in turn; speeds of the first round are dropped.

    Clocks and neighbours drift into all alike.
    """
    for number in range(num + 1):
        for contender in contenders if number % 2 else contenders[::-1]:
            contender.round()
        if number == 0:
            for contender in contenders:
                contender.speeds.clear()
        print(f"round {number} of {num}", file=sys.stderr)


def header(columns: dict) -> str:
    """Headings of columns {heading: (key, format, factor)}."""
    return "".join(f"{heading:>{COLUMN}}" for heading in columns)


def cells(row: dict, columns: dict) -> str:
    """A row's values; "-" where it has none."""
    line = ""
    for key, form, factor in columns.values():
        value = row.get(key)
        text = "-" if value is None else format(factor * value if factor != 1 else value, form)
        line += f"{text:>{COLUMN}}"
    return line


def write_json(tool: str, args, **more) -> dict:
    """A benchmark's settings and what it found, into --output where it is given."""
    document = {"tool": tool, **vars(args), **more}
    if args.output:
        Path(args.output).write_text(json.dumps(document) + "\n", encoding="utf-8")
    return document
