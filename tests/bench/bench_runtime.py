"""Speed of the loop against transformers' own generation, all in one run on one machine.

Contenders decode the same prompts in turn, round after round, so that clocks and neighbours drift
into all alike; a cell is the median over rounds. Greedy, float32; ids are compared with vanilla's.
Prompt lookup copies what is there (clamp) on both sides, up to 10 tokens after at most 3 matched;
draft models draft 5. What is outside the forwards, bench_overhead.py says by phase.

Run:    python tests/bench/bench_runtime.py                       (mini models, a few minutes)
        python tests/bench/bench_runtime.py --rounds 3 --runtimes eager
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]
AGAINST = {
    "vanilla": "transformers generate",
    "pld": "transformers prompt lookup",
    "sps": "transformers assisted",
}


class Contender:
    """A way to decode a prompt: decode(ids) -> (new ids, seconds, steps or None)."""

    def __init__(self, name: str, decode, against: str | None = None):
        self.name, self.decode, self.against = name, decode, against
        self.speeds: list[float] = []
        self.answers: list[list[int]] = []

    def round(self, prompts) -> None:
        """Decode all prompts once; tokens per second of the round."""
        tokens = seconds = 0
        self.answers = []
        for ids in prompts:
            begin = time.perf_counter()
            new = self.decode(ids)
            seconds += time.perf_counter() - begin
            tokens += len(new)
            self.answers.append(new)
        self.speeds.append(tokens / seconds)


def ours(name, target, drafter, stop, limit, against=None) -> Contender:
    """A drafter in the loop."""
    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler

    def decode(ids):
        return generate(target, drafter, [ids], Sampler(), [0], stop, limit)[0].output_ids

    return Contender(name, decode, against)


def theirs(name, model, stop, limit, **options) -> Contender:
    """A way of transformers' generate, by its options."""
    import torch

    def decode(ids):
        inputs = torch.tensor([ids])
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(stop.eos_ids),
            pad_token_id=min(stop.eos_ids),
            **options,
        )
        return output[0, len(ids) :].tolist()

    return Contender(name, decode)


def main():
    """Build the contenders, run the rounds, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    mini = ROOT / "data" / "mini_models"
    parser.add_argument("--model-path", default=str(mini / "target"))
    parser.add_argument("--drafter-path", default=str(mini / "sps"))
    parser.add_argument("--limit-per-category", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--runtimes", default="eager,compile", help="ours, comma list")
    args = parser.parse_args()
    contenders, prompts, host = build(args)
    for number in range(args.rounds + 1):
        for contender in contenders if number % 2 else contenders[::-1]:
            contender.round(prompts)
        if number == 0:  # warm-up
            for contender in contenders:
                contender.speeds.clear()
        print(f"round {number} of {args.rounds}", file=sys.stderr)
    report(contenders, host)


def build(args):
    """(contenders, prompts, {name: ms outside the forwards})."""
    import torch
    from bench_overhead import Contender as Overhead
    from bench_overhead import Forwards, warm_up

    from model.common.contract.sequence import EmptyDrafter, PerSequence
    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import per_category, read_questions
    from model.common.target.loading import load_target
    from model.pld.drafter import PLDDrafter
    from model.sps.drafter import SpSDrafter

    torch.set_num_threads(args.num_threads or torch.get_num_threads())
    prompter = Prompter(load_tokenizer(args.model_path))
    questions = read_questions(ROOT / "data" / "mini_bench" / "question.jsonl")
    questions = per_category(questions, args.limit_per_category)
    prompts = [prompter.render(question["turns"], []) for question in questions]
    limit = args.max_new_tokens
    capacity = max(map(len, prompts)) + limit + 32
    plain = load_target(args.model_path, "float32", "cpu", "eager").model
    stop = prompter.stop_rules(plain.generation_config)
    plain.set_attn_implementation("sdpa")
    assistant = load_target(args.drafter_path, "float32", "cpu", "eager").model
    assistant.set_attn_implementation("sdpa")
    assistant.generation_config.num_assistant_tokens = 5
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    contenders = [
        theirs("transformers generate, dynamic", plain, stop, limit),
        theirs(
            "transformers generate, static cache", plain, stop, limit, cache_implementation="static"
        ),
        theirs(
            "transformers prompt lookup",
            plain,
            stop,
            limit,
            prompt_lookup_num_tokens=10,
            max_matching_ngram_size=3,
        ),
        theirs("transformers assisted", plain, stop, limit, assistant_model=assistant),
    ]
    host = {}
    for runtime in args.runtimes.split(","):
        forwards = Forwards()
        with forwards.building():
            steps = load_target(args.model_path, "float32", "cpu", runtime)
            draft = load_target(args.drafter_path, "float32", "cpu", runtime)
            drafters = {
                "vanilla": EmptyDrafter(),
                "pld": PerSequence(lambda: PLDDrafter(3, 10, clamp=True), 10),
                "sps": SpSDrafter(draft, steps, "constant", 5, 0.4),
            }
        for name, drafter in drafters.items():
            warm_up(steps, drafter, stop, prompts[0], capacity)
            contender = ours(f"{name} {runtime}", steps, drafter, stop, limit, AGAINST[name])
            contenders.append(contender)
            overhead = Overhead(steps, drafter, stop, forwards, limit, prompts[:4])
            for _ in range(2):
                overhead.round()
            host[contender.name] = overhead.row()["outside_ms"]
    return contenders, prompts, host


def report(contenders, host) -> None:
    """Tokens/s, ratio to transformers' best of the same kind, equality with vanilla's ids."""
    speed = {c.name: statistics.median(c.speeds) for c in contenders}
    reference = next(c for c in contenders if c.name.startswith("vanilla")).answers
    print(
        f"{'contender':40} {'tokens/s':>9} {'ratio':>6} {'same ids':>9} {'ms outside forwards':>20}"
    )
    rows = []
    for c in contenders:
        ratio = None
        if c.against:
            ratio = speed[c.name] / max(
                v for name, v in speed.items() if name.startswith(c.against)
            )
        same = sum(a == b for a, b in zip(c.answers, reference))
        rows.append(
            {
                "name": c.name,
                "tokens_per_s": round(speed[c.name], 1),
                "ratio_to_transformers": ratio and round(ratio, 3),
                "same_ids": f"{same}/{len(reference)}",
                "ms_outside_forwards": host.get(c.name) and round(host[c.name], 3),
            }
        )
        shown = [value if value is not None else "" for value in rows[-1].values()]
        print(f"{shown[0]:40} {shown[1]:>9} {shown[2]:>6} {shown[3]:>9} {shown[4]:>20}")
    print(json.dumps({"tool": "bench_runtime", "rows": rows}))


if __name__ == "__main__":
    main()
