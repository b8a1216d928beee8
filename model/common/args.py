"""Flags that every method has, defined once; names are Spec-Bench's where it has them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from model.common import pairs
from model.common.errors import BadInput
from model.common.target.twin.shapes import KNOWN, read_shape

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "float16", "bfloat16")
RUNTIMES = ("eager", "compile", "cudagraph")
MINI_TARGET = ROOT / "data" / "mini_models" / "target"
EXAMPLE_OF_JSON = '{"enable_thinking": false}'


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and weights that are known for some targets."""

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        if (name := vars(found).pop("gguf_file", None)) is not None:
            if not name.lower().endswith(".gguf"):
                self.error(f"--gguf-file {name}: no name of a GGUF file (.gguf)")
            found.model_path = f"{found.model_path.rstrip('/')}/{name}"
        for action in self._actions:
            known = getattr(action, "known_weights", None)
            if known is None or getattr(found, action.dest) is not None:
                continue
            if not action.needed(found):
                continue
            path = known.get(target_name(found.model_path))
            if path is None:
                flag = action.option_strings[0]
                self.error(f"{flag} is needed: no weights are known for {found.model_path}")
            setattr(found, action.dest, path)
        return found, rest

    def error(self, message):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def _number(convert, low, high, words):
    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: {words}")
        return value

    return parse


def at_least(low: int):
    """Argument type: an integer from `low` on."""
    return _number(int, low, 2**62, f"an integer of at least {low} is needed")


def between(low: float, high: float):
    """Argument type: a number in [low, high]."""
    return _number(float, low, high, f"a number from {low:g} to {high:g} is needed")


def temperature(text: str) -> float:
    """Argument type: 0, or what float32 logits can be divided by."""
    if text and not text.strip("0."):
        return 0.0
    return _number(float, 1e-4, 100, "0 or a number from 0.0001 to 100 is needed")(text)


def row_range(text: str) -> tuple[int, int] | None:
    """Argument type: auto (None), none, or a range of row counts."""
    from model.common.target.products import read_rows

    try:
        return None if text == "auto" else read_rows(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: auto, none or a range as 1-64") from None


def json_object(text: str) -> dict:
    """Argument type: names and values as JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text}: a JSON object is needed: {EXAMPLE_OF_JSON}")
    return value


def token_ids(text: str) -> list[int]:
    """Argument type: ids separated by commas."""
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        ids = [-1]
    if min(ids) < 0:
        raise argparse.ArgumentTypeError(f"{text}: token ids separated by commas are needed")
    return ids


def some_text(text: str) -> str:
    """Argument type: a text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("an empty text stands everywhere")
    return text


def shape_name(text: str) -> str:
    """Argument type: the name or the numbers of a shape in shapes.py."""
    try:
        read_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def target_name(model_path: str) -> str:
    """ "mini" for the mini target, else the last part of a path or hub id, in small letters."""
    if Path(model_path).resolve() == MINI_TARGET:
        return "mini"
    return Path(model_path.rstrip("/")).name.lower()


def add_weights(group, flag: str, text: str, known: dict[str, str], needed=lambda args: True):
    """A flag for a method's weights: directory or hub id.

    known   where they are for some targets, by target_name(): {"vicuna-7b-v1.3": "hub/id"}
    needed  whether a command line cannot do without: where it can, there is no default
    """
    action = group.add_argument(flag, help=f"{text}: directory or hub id (default: by the target)")
    action.known_weights, action.needed = known, needed


def mini_weights(name: str) -> str:
    """Weights of the mini target that come with the project."""
    return str(MINI_TARGET.with_name(name))


def make_parser(method: str, doc: str, add_args) -> Parser:
    """The parser of a method's script; add_args(group) adds the flags that only it has."""
    parser = Parser(
        prog=f"inference_{method}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group(f"{method}'s own")
    add_args(group)
    model = parser.add_argument_group("model and device")
    _add_model(model)
    _add_device(model)
    _add_questions(parser.add_argument_group("questions and answers"))
    _add_decoding(parser.add_argument_group("decoding"))
    _add_ends(parser.add_argument_group("where an answer ends"))
    for action in parser._actions:
        value, silent = action.default, (None, [], argparse.SUPPRESS)
        if not isinstance(value, bool) and value not in silent and "default" not in action.help:
            action.help += f" (default: {value})".replace("%", "%%")
    return parser


def _add_model(group):
    group.add_argument(
        "--model-path", required=True, help="target: model directory, hub id or GGUF file"
    )
    group.add_argument(
        "--gguf-file", metavar="NAME", help="which GGUF file of that directory or hub repository"
    )
    group.add_argument(
        "--model-id", help="name in file names and tables (default: made from the run)"
    )
    group.add_argument(
        "--scale-to",
        type=shape_name,
        metavar="SHAPE",
        help=f"run the target's twin: the same function at the size and cost of {KNOWN}",
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with the checkpoint (its auto_map) on this machine, as you",
    )


def _add_device(group):
    group.add_argument(
        "--dtype",
        choices=(*DTYPES, "float64"),
        default="float16",
        help="target's precision; float64 settles ties that float32 leaves",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="eager",
        help="how a step's forward is run; compile: layer by layer; cudagraph: recorded on a GPU",
    )
    group.add_argument("--num-threads", type=at_least(1), help="CPU threads (default: PyTorch's)")
    group.add_argument(
        "--turned-rows",
        type=row_range,
        metavar="auto|none|N-M",
        help="on a CPU in float32: products of so many rows are turned, see target/products.py"
        " (default: what is timed to be faster, when the target is loaded)",
    )
    group.add_argument(
        "--num-gpus-per-model", type=at_least(1), default=1, help="GPUs one target is spread over"
    )
    group.add_argument(
        "--num-gpus-total",
        type=at_least(1),
        default=1,
        help="GPUs in all; more than one model's: Ray",
    )


def _add_questions(group):
    group.add_argument(
        "--bench-name", default="mini_bench", help="folder under data/ with questions"
    )
    group.add_argument("--question-file", help="questions elsewhere than data/BENCH/question.jsonl")
    group.add_argument("--question-begin", type=at_least(0), help="first question, counted from 0")
    group.add_argument("--question-end", type=at_least(0), help="question to stop before")
    group.add_argument("--question-ids", help="only these ids, separated by commas")
    group.add_argument(
        "--categories", help="only these categories (mt_bench = all two-turn topics)"
    )
    group.add_argument("--limit-per-category", type=at_least(1), help="questions per category")
    group.add_argument("--template", help="FastChat template, or plain (default: the tokenizer's)")
    group.add_argument(
        "--template-args",
        type=json_object,
        metavar="JSON",
        help=f"variables of the tokenizer's chat template: {EXAMPLE_OF_JSON}",
    )
    group.add_argument(
        "--system-prompt", metavar="TEXT", help="system message of questions that bring none"
    )
    group.add_argument("--history", help="answer file whose answers stand in later turns' prompts")
    group.add_argument("--answer-file", help="default: data/BENCH/model_answer/MODEL_ID.jsonl")
    group.add_argument("--overwrite", action="store_true", help="replace another run's answer file")
    group.add_argument("--num-choices", type=at_least(1), default=1, help="answers per question")
    group.add_argument("--num-runs", type=at_least(1), help="repeat into run_1 ... run_N")
    group.add_argument(
        "--paired",
        type=at_least(0),
        metavar="N",
        help="decode every N-th question with the empty draft too, in alternating order, so that"
        " tables tell how far the machine drifted; 1 = all, 0 = none: drift is unknown"
        f" (default: {pairs.USUAL}, vanilla 0)",
    )


def _add_decoding(group):
    group.add_argument("--temperature", type=temperature, default=0.0, help="0 is greedy")
    group.add_argument("--top-p", type=between(1e-6, 1), default=1.0, help="nucleus mass")
    group.add_argument("--top-k", type=at_least(0), default=0, help="best k tokens; 0 = all")
    group.add_argument(
        "--min-p",
        type=between(0, 1),
        default=0.0,
        help="least probability, as a share of the best token's (after top-p); 0 = all",
    )
    group.add_argument(
        "--repetition-penalty",
        type=between(0.01, 100),
        default=1.0,
        metavar="FACTOR",
        help="of tokens in prompt and answer: logits above 0 divided, below 0 multiplied by it",
    )
    group.add_argument(
        "--presence-penalty",
        type=between(-2, 2),
        default=0.0,
        metavar="LOGITS",
        help="subtracted from the logits of tokens that stand in the answer",
    )
    group.add_argument(
        "--frequency-penalty",
        type=between(-2, 2),
        default=0.0,
        metavar="LOGITS",
        help="subtracted as many times as the token stands in the answer",
    )
    group.add_argument("--seed", type=at_least(0), default=0, help="of the sampled tokens")
    group.add_argument(
        "--warmup", type=at_least(0), default=3, help="untimed decodings of the first question"
    )
    group.add_argument("--batch-size", type=at_least(1), default=1, help="questions at a time")


def _add_ends(group):
    group.add_argument("--max-new-tokens", type=at_least(1), default=1024, help="per turn (tokens)")
    group.add_argument(
        "--stop",
        type=some_text,
        action="append",
        metavar="TEXT",
        help="text that ends an answer and is cut from it, beside the template's; repeatable",
    )
    group.add_argument(
        "--stop-token-ids",
        type=token_ids,
        action="extend",
        metavar="ID,ID",
        help="ids that end an answer, beside the model's, tokenizer's and template's",
    )
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        help="end answers by the other flags of this group alone",
    )


def add_state(parser) -> None:
    """--state, for methods that can carry what they learned from one question to the next."""
    parser.add_argument(
        "--state",
        choices=("cold", "warm"),
        default="cold",
        help="cold: forget after every question; warm: keep, so that speed depends on order",
    )


def add_offload(parser) -> None:
    """--offload and its settings, for methods meant for targets that the device cannot hold."""
    parser.add_argument(
        "--offload",
        choices=("ram", "disk"),
        help="where the target's layers wait until they are due (default: all on the device)",
    )
    parser.add_argument("--offload-folder", help="of --offload disk: files of the layers, removed")
    parser.add_argument(
        "--offload-buffers", type=at_least(1), default=2, help="layers on the device at a time"
    )


def is_warm(args) -> bool:
    """Whether the run carries state between questions."""
    return getattr(args, "state", "cold") == "warm"


def check(args) -> None:
    """Refuse flags that exclude each other."""
    if args.temperature == 0 and (args.top_p < 1 or args.top_k or args.min_p):
        raise BadInput("--top-p, --top-k and --min-p need --temperature above 0")
    if args.num_gpus_total % args.num_gpus_per_model:
        raise BadInput(
            f"--num-gpus-total {args.num_gpus_total} is no multiple of "
            f"--num-gpus-per-model {args.num_gpus_per_model}"
        )
    if args.scale_to and args.num_gpus_per_model > 1:
        raise BadInput("--scale-to and --num-gpus-per-model above 1 exclude each other")
    if getattr(args, "draft_scale_to", None) and not args.scale_to:
        raise BadInput("--draft-scale-to needs --scale-to")
    if args.num_gpus_total > 1 and args.device == "cpu":
        raise BadInput("--num-gpus-total above 1 and --device cpu exclude each other")
    if is_warm(args) and args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput("--state warm needs one worker; --num-gpus-total must be one model's GPUs")
    for flag, read in (("--question-file", args.question_file), ("--history", args.history)):
        if read and args.answer_file and Path(read).resolve() == Path(args.answer_file).resolve():
            raise BadInput(f"--answer-file {args.answer_file}: it is the {flag} of this run")
    if args.num_runs and args.answer_file:
        raise BadInput("--num-runs chooses the files; it cannot go with --answer-file")


def default_model_id(method: str, args) -> str:
    """NAME-METHOD-DTYPE-temperature-T, in the manner of Spec-Bench's file names."""
    name = Path(args.model_path.rstrip("/")).name.removesuffix(".gguf")
    if args.scale_to:
        name += f"-twin-{args.scale_to}"
    return f"{name}-{method}-{args.dtype}-temperature-{args.temperature}"


def answer_path(args, run: int | None = None) -> Path:
    """Where a run's answers go."""
    if args.answer_file:
        return Path(args.answer_file)
    folder = ROOT / "data" / args.bench_name / "model_answer"
    if run is not None:
        folder = folder / f"run_{run}"
    return folder / f"{args.model_id}.jsonl"


def question_path(args) -> Path:
    """The question file of the bench."""
    if args.question_file:
        return Path(args.question_file)
    return ROOT / "data" / args.bench_name / "question.jsonl"
