"""Make the acceptance head's training examples: target answers, draft tokens, how likely they pass.

Source: Huang, Guo, Wang, arXiv 2405.19715, section 3.2
Run:    python -m model.specdecpp.prepare --model-path meta-llama/Llama-2-70b-chat-hf
        --drafter-path meta-llama/Llama-2-7b-chat-hf --data alpaca_data.json --output alpaca.jsonl
A record is an Alpaca, HumanEval, GSM8K or ShareGPT one (its first turn). An interrupted run goes
on; what is drawn for a record depends on its number and the seed, not on the batch.
"""

from __future__ import annotations

import os

from model.common.args import DTYPES, Parser, at_least, temperature
from model.common.errors import ends_in_one_line
from model.common.training.flags import Help


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(prog="prepare_specdecpp", description=__doc__, formatter_class=Help)
    add = parser.add_argument
    add("--model-path", required=True, help="target: directory or hub id")
    add("--drafter-path", required=True, help="draft model: directory or hub id")
    add("--data", required=True, help="records, .json or .jsonl")
    add("--output", required=True, help="examples, .jsonl")
    add("--template", help="FastChat template or plain; none: the tokenizer's")
    add("--limit", type=at_least(1), help="records to use; none: all")
    add("--max-new-tokens", type=at_least(1), default=512, help="of an answer")
    add("--temperature", type=temperature, default=1.0, help="of both models; 0 is greedy")
    add(
        "--labels",
        choices=("plain", "warped"),
        default="plain",
        help="law of the acceptance probabilities: temperature 1 as published, or --temperature",
    )
    add("--seed", type=at_least(0), default=0, help="of what is drawn")
    add("--batch-size", type=at_least(1), default=8, help="records at a time")
    add("--dtype", choices=DTYPES, default="float16", help="both models' precision")
    add("--device", default="auto", help="auto, cpu, or as PyTorch names it")
    add("--drafter-device", help="where the draft model sits (none: the target's)")
    add("--num-threads", type=at_least(1), help="CPU threads; none: PyTorch's")
    add("--overwrite", action="store_true", help="replace examples of other settings")
    return parser


def main(argv=None) -> None:
    """Prepare and exit: 0, 2 on bad input, 130 if interrupted."""
    parser = make_parser()
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line(parser.prog):
        prepare(args)


def prepare(args) -> int:
    """Write the examples that are not there yet; returns how many there are."""
    import torch
    from tqdm import tqdm

    from model.common.prompts.templates import Rejected
    from model.specdecpp.examples import ExampleFile, read_prompts
    from model.specdecpp.scoring import Scorer

    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    rejected = Rejected()
    prompts = read_prompts(args.data, rejected)[: args.limit]
    file = ExampleFile(args.output, settings(args), args.overwrite)
    left = [prompt for prompt in prompts if prompt.number not in file.done]
    if left:
        scorer = Scorer(args)
        with tqdm(total=len(left), unit="record", disable=None) as bar:
            for begin in range(0, len(left), args.batch_size):
                group = left[begin : begin + args.batch_size]
                file.add(scorer.examples(group, rejected))
                bar.update(len(group))
    rejected.close(args.data, len(file.done))
    print(f"{len(file.done)} examples, {rejected.count} records left out", flush=True)
    return len(file.done)


def settings(args) -> dict:
    """What the examples depend on, --limit aside."""
    from pathlib import Path

    from model.common.records.writer import sha256_file, sha256_weights
    from model.common.target.loading import check_model_path, model_folder

    hashes = {"data_sha256": sha256_file(Path(args.data))}
    for name in ("model_path", "drafter_path"):
        check_model_path(getattr(args, name))
        hashes[f"{name}_sha256"] = sha256_weights(model_folder(getattr(args, name)))
    names = ("template", "max_new_tokens", "temperature", "labels", "seed", "dtype")
    return {name: getattr(args, name) for name in names} | hashes


if __name__ == "__main__":
    main()
