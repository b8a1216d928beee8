"""Flags that every method has, defined once; names are Spec-Bench's where it has them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model.common import pairs
from model.common.argument_types import (
    add_template_args,
    at_least,
    between,
    gpu_strategy,
    row_range,
    shape_name,
    shares_of,
    some_text,
    temperature,
    token_ids,
)
from model.common.errors import BadInput, ends_in_one_line
from model.common.load.flags import add_load, check_load
from model.common.records.energy import add_energy
from model.common.target.twin.shapes import KNOWN

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "float16", "bfloat16")
RUNTIMES = ("eager", "compile", "cudagraph")
MINI_TARGET = ROOT / "data" / "mini_models" / "target"


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and weights that are known for some targets."""

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        if (name := vars(found).pop("gguf_file", None)) is not None:
            if not name.lower().endswith(".gguf"):
                self.error(f"--gguf-file {name}: no name of a GGUF file (.gguf)")
            found.model_path = f"{found.model_path.rstrip('/')}/{name}"
        if "gpu_strategy" in vars(found):
            self._settle_devices(found)
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

    def _settle_devices(self, found) -> None:
        """Let --num-gpus-per-model and --num-gpus-total be what --gpu-strategy takes."""
        strategy, given = found.gpu_strategy, found.num_gpus_per_model
        needed = 1 if strategy == "same" else sum(shares_of(strategy, None))
        if needed and given not in (None, needed):
            self.error(f"--gpu-strategy {strategy}: --num-gpus-per-model is {needed}, not {given}")
        if strategy == "auto" and given is None:
            from model.common.target.placement import visible_devices

            if found.num_gpus_total is not None:
                self.error("--gpu-strategy auto and --num-gpus-total need --num-gpus-per-model")
            with ends_in_one_line(self.prog):
                needed = len(visible_devices(found.device))
        found.num_gpus_per_model = given or needed or 1
        found.num_gpus_total = found.num_gpus_total or found.num_gpus_per_model

    def error(self, message):
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def target_name(model_path: str) -> str:
    """ "mini" for the mini target, else the last part of a path or hub id, in small letters."""
    if Path(model_path).resolve() == MINI_TARGET.resolve():
        return "mini"
    return Path(model_path.rstrip("/")).name.lower()


def add_weights(group, flag: str, text: str, known: dict[str, str], needed=lambda args: True):
    """A flag for a method's weights: directory or hub id.

    known   where they are for some targets, by target_name(): {"vicuna-7b-v1.3": "hub/id"}
    needed  whether a command line cannot do without: where it can, there is no default
    """
    names = ", ".join(known) or "none"
    action = group.add_argument(flag, help=f"{text}: directory or hub id (known for: {names})")
    action.known_weights, action.needed = known, needed


def mini_weights(name: str) -> str:
    """Weights of the mini target that come with the project."""
    return str(MINI_TARGET.with_name(name))


def smollm2_weights(name: str) -> str:
    """Weights of SmolLM2-135M-Instruct that come with the project."""
    return str(ROOT / "data" / "heads" / "smollm2" / name)


def make_parser(method: str, doc: str, add_args, here: bool = True) -> Parser:
    """The parser of a method's script; add_args(group) adds the flags that only it has.

    here: the target is decoded by this process. Of a server's there are no flags of devices, whose
    values are their defaults.
    """
    parser = Parser(
        prog=f"inference_{method}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = parser.add_argument_group(f"{method}'s own")
    add_args(group)
    model = parser.add_argument_group("model and device")
    _add_model(model)
    if here:
        _add_device(model)
    else:
        unseen = argparse.ArgumentParser()
        _add_device(unseen)
        parser.set_defaults(**vars(unseen.parse_args([])))
    _add_questions(parser.add_argument_group("questions and answers"))
    _add_decoding(parser.add_argument_group("decoding"))
    _add_ends(parser.add_argument_group("where an answer ends"))
    add_load(parser.add_argument_group("load: requests of one turn that arrive by a schedule"))
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
        "--dtype",
        choices=(*DTYPES, "float64"),
        default="float16",
        help="target's precision; float64 settles ties that float32 leaves",
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that comes with the checkpoint (its auto_map) on this machine, as you",
    )


def _add_device(group):
    group.add_argument(
        "--scale-to",
        type=shape_name,
        metavar="SHAPE",
        help=f"run the target's twin: the same function at the size and cost of {KNOWN}",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="eager",
        help="how a step's forward is run; compile: layer by layer; cudagraph: recorded on a GPU",
    )
    group.add_argument("--num-threads", type=at_least(1), help="CPU threads (default: PyTorch's)")
    add_energy(group)
    group.add_argument(
        "--turned-rows",
        type=row_range,
        metavar="auto|none|N-M[/K]",
        help="on a CPU in float32: products of N to M rows are turned, from K on padded, see"
        " target/products.py (default: what is timed to be faster, when the target is loaded)",
    )
    group.add_argument(
        "--gpu-strategy",
        type=gpu_strategy,
        metavar="STRATEGY",
        help="where target and draft model sit: same (one device), separate (a device each),"
        " multi-gpu-ratio:A:B (the target's layers on A devices, the draft model's on the next B),"
        " auto (both over all by accelerate). Heads sit with the target's LM head"
        " (default: same, of several GPUs auto)",
    )
    group.add_argument(
        "--num-gpus-per-model",
        type=at_least(1),
        help="GPUs of one target and its drafter (default: what --gpu-strategy takes; auto: all)",
    )
    group.add_argument(
        "--num-gpus-total",
        type=at_least(1),
        help="GPUs in all; more than one model's: Ray (default: one model's)",
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
    add_template_args(group)
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
        "--offload-buffers", type=at_least(1), help="layers on the device at a time (default: 2)"
    )


def is_warm(args) -> bool:
    """Whether the run carries state between questions."""
    return getattr(args, "state", "cold") == "warm"


def check(args) -> None:
    """Refuse flags that exclude each other."""
    if getattr(args, "energy_interval", None) is not None and not args.energy:
        raise BadInput("--energy-interval needs --energy, whose samples it is of")
    check_load(args)
    if args.temperature == 0 and (args.top_p < 1 or args.top_k or args.min_p):
        raise BadInput("--top-p, --top-k and --min-p need --temperature above 0")
    if args.num_gpus_total % args.num_gpus_per_model:
        raise BadInput(
            f"--num-gpus-total {args.num_gpus_total} is no multiple of "
            f"--num-gpus-per-model {args.num_gpus_per_model}"
        )
    _check_spread(args)
    if args.gpu_strategy and getattr(args, "drafter_device", None):
        raise BadInput("--gpu-strategy and --drafter-device both say where the draft model sits")
    if getattr(args, "draft_scale_to", None) and not args.scale_to:
        raise BadInput("--draft-scale-to needs --scale-to")
    if args.num_gpus_total > args.num_gpus_per_model and args.device == "cpu":
        raise BadInput("--num-gpus-total above one model's and --device cpu exclude each other")
    if is_warm(args) and args.num_gpus_total > args.num_gpus_per_model:
        raise BadInput("--state warm needs one worker; --num-gpus-total must be one model's GPUs")
    for flag, read in (("--question-file", args.question_file), ("--history", args.history)):
        if read and args.answer_file and Path(read).resolve() == Path(args.answer_file).resolve():
            raise BadInput(f"--answer-file {args.answer_file}: it is the {flag} of this run")
    if args.num_runs and args.answer_file:
        raise BadInput("--num-runs chooses the files; it cannot go with --answer-file")


def _check_spread(args) -> None:
    """Refuse what is for models on one device where one is to be spread over several."""
    most = max(shares_of(args.gpu_strategy, args.num_gpus_per_model))
    flags = {"--runtime cudagraph": args.runtime == "cudagraph", "--scale-to": args.scale_to}
    flags |= {"--offload": getattr(args, "offload", None)}
    refused = [flag for flag, given in flags.items() if given and most > 1]
    if refused:
        how = f"--gpu-strategy {args.gpu_strategy}"
        how = how if args.gpu_strategy else f"--num-gpus-per-model {args.num_gpus_per_model}"
        raise BadInput(f"{refused[0]} and {how} exclude each other: a model on {most} devices")


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
