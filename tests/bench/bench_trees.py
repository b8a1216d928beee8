"""Trees left to the harness beside fixed ones, and draft vocabularies: accepted tokens and speed.

Every question is decoded by vanilla and by all trees in turn, round after round, there and back;
automatic trees are fitted on other questions than those. A speed is of one answer's prefill and
steps; ratios are to vanilla's: of all rounds, and of the slowest and the fastest round.

Run:    python tests/bench/bench_trees.py                              (mini target, minutes)
        python tests/bench/bench_trees.py --model-path DIR --flags "eagle2=--eagle-path HEAD"
        "eagle3=--eagle-path HEAD3" --question-file data/spec_bench/question.jsonl
        --num-threads 2 --draft-vocabs 2048,8192,16384
Draft vocabularies are shown with the automatic tree of each.
"""

import shlex
import sys
from pathlib import Path

import bench_parts as parts

METHODS = "eagle2,eagle3"
SIZE_FLAG = {"eagle2": "--total-token", "eagle3": "--total-token", "specexec": "--max-budget"}
COLUMNS = {  # heading: (key, format, factor)
    "nodes": ("nodes", "d", 1),
    "depth": ("depth", "d", 1),
    "expected": ("expected", ".2f", 1),
    "accepted": ("accepted", ".2f", 1),
    "tokens/s": ("tokens_per_s", ".1f", 1),
    "ratio": ("ratio", ".2f", 1),
    "slowest": ("slowest", ".2f", 1),
    "fastest": ("fastest", ".2f", 1),
}


def names(text: str) -> list[str]:
    """Argument type: values separated by commas; an empty text has none."""
    return [part for part in text.split(",") if part]


class Contender:
    """A drafter with its totals of every round."""

    def __init__(self, label: str, target, drafter, stop, limit: int, facts: dict):
        self.label, self.facts = label, facts
        self.given = target, drafter, stop
        self.limit, self.rounds, self.ids = limit, [], {}
        self.tokens = self.steps = self.accepted = 0

    def begin_round(self) -> None:
        """Seconds of the questions that follow are of a new round."""
        self.rounds.append(0.0)

    def answer(self, ids: list[int]) -> None:
        """Decode a prompt; another answer than before ends the benchmark."""
        turn = parts.answer(*self.given, ids, self.limit)
        self.rounds[-1] += turn.wall_s
        self.tokens += len(turn.output_ids)
        self.steps += len(turn.accept_lengths)
        self.accepted += sum(turn.accept_lengths)
        before = self.ids.setdefault(tuple(ids), turn.output_ids)
        assert before == turn.output_ids, f"{self.label}: two answers to one prompt"

    def row(self, baseline) -> dict:
        """What the table shows; baseline: vanilla's Contender."""
        same = sum(self.ids[prompt] == ids for prompt, ids in baseline.ids.items())
        ratios = [theirs / own for theirs, own in zip(baseline.rounds, self.rounds)]
        total = self.tokens / sum(self.rounds)
        return {
            "tree": self.label,
            **self.facts,
            "accepted": round(self.accepted / self.steps, 4),
            "tokens_per_s": round(total, 3),
            "ratio": round(total / (baseline.tokens / sum(baseline.rounds)), 4),
            "slowest": round(min(ratios), 4),
            "fastest": round(max(ratios), 4),
            "ids_as_vanilla": same,
        }


def fitted(drafter, target, stop, prompts: list, limit: int) -> dict:
    """Let the harness choose the drafter's tree; what it expects of it."""
    from model.common.fitting.fit import fit_tree
    from model.common.loop.decode import Loop
    from model.common.loop.sampling import Sampler

    capacity = max(map(len, prompts)) + limit

    def decode(drafter, source):
        Loop(target, drafter, Sampler(), stop, 1, capacity).run(source)

    tree = fit_tree(drafter, target, dict(enumerate(prompts)), 1, decode)
    return {"expected": tree["expected"], "price_s": tree["price_s"]}


def contenders_of(args, target, stop, prompts: list) -> list[Contender]:
    """Vanilla, then every method's trees and vocabularies; prompts: to fit on."""
    from model.common.contract.sequence import EmptyDrafter

    own = dict(text.split("=", 1) for text in args.flags)
    path = args.token_counts_path
    counts = ["--token-counts-path", path] if path else []
    found = [Contender("vanilla", target, EmptyDrafter(), stop, args.max_new_tokens, {})]
    for method in args.methods:
        flags = ["--model-path", args.model_path, "--dtype", args.dtype]
        flags += shlex.split(own.get(method, ""))
        size = SIZE_FLAG.get(method, "--tree")
        kinds = [(f"{method} {tree}", [size, tree]) for tree in args.trees]
        if method in args.vocab_methods:
            kinds += [
                (f"{method} auto, {num} ids", [size, "auto", "--draft-vocab", num, *counts])
                for num in args.draft_vocabs
            ]
        for label, more in kinds:
            drafter = parts.build_script(method, [*flags, *more], target)
            facts = {}
            if drafter.fits_tree:
                facts = fitted(drafter, target, stop, prompts, args.max_new_tokens)
            facts = {"nodes": drafter.max_nodes, "depth": drafter.max_depth, **facts}
            print(f"{label}: {drafter.max_nodes} nodes", file=sys.stderr)
            found.append(Contender(label, target, drafter, stop, args.max_new_tokens, facts))
    return found


def make_parser():
    """The command line."""
    shared = {"methods": METHODS, "questions": 6, "max_new_tokens": 64, "rounds": 3}
    shared |= {"num_threads": None, "dtype": "float32", "runtime": "eager", "output": None}
    parser = parts.make_parser(__doc__, model_path=parts.TARGET, **shared)
    add = parser.add_argument
    add("--flags", nargs="*", default=[], metavar="METHOD=FLAGS", help="of a method's command")
    add("--trees", type=names, default="auto,8,16,32,60", help="sizes or, of static trees, names")
    add("--draft-vocabs", type=names, default="", help="ids that are drafted, by --vocab-methods")
    add("--token-counts-path", help="for these (default: the file beside the head)")
    add("--vocab-methods", type=names, default="eagle2", help="methods that are shown so")
    mini = parts.ROOT / "data/mini_bench/question.jsonl"
    add("--question-file", default=str(mini), help="questions (default: the mini bench's)")
    return parser


def main(argv=None) -> None:
    """Print the table."""
    args = make_parser().parse_args(argv)
    import torch

    from model.common.fitting.fit import QUESTIONS
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import read_questions
    from model.common.target.loading import load_target

    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    prompter = Prompter(load_tokenizer(args.model_path))
    questions = read_questions(Path(args.question_file))
    questions = parts.spread(questions, args.questions + QUESTIONS)
    prompts = [list(prompter.render(question["turns"][:1], [])) for question in questions]
    timed, others = prompts[: args.questions], prompts[args.questions :]
    target = load_target(args.model_path, args.dtype, "auto", args.runtime)
    stop = prompter.stop_rules(target.model.generation_config)
    found = contenders_of(args, target, stop, others)
    for contender in found:
        parts.warm_up(target, contender.given[1], stop, timed, args.max_new_tokens)
    for number in range(args.rounds):
        for contender in found:
            contender.begin_round()
        for place, ids in enumerate(timed):
            for contender in found if (number + place) % 2 else found[::-1]:
                contender.answer(ids)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    rows = [contender.row(found[0]) for contender in found]
    print(f"{'':24}" + parts.header(COLUMNS))
    for row in rows:
        print(f"{row['tree']:24}" + parts.cells(row, COLUMNS))
    parts.write_json("bench_trees", args, rows=rows)


if __name__ == "__main__":
    main()
