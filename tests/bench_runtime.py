"""Speed of the loop against transformers' own generation, all in one run on one machine.

Contenders decode the same prompts in turn, round after round, so that clocks and neighbours drift
into all alike; a cell is the median over rounds. Greedy, float32; ids are compared with vanilla's.
Prompt lookup copies what is there (clamp) on both sides, up to 10 tokens after at most 3 matched;
draft models draft 5.

Run:    .venv/bin/python tests/bench_runtime.py                       (mini models, a few minutes)
        .venv/bin/python tests/bench_runtime.py --rounds 3 --no-compile
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


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
    from model.common.decode import generate
    from model.common.sampling import Sampler

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


def outside_forwards(target, models, decode, prompts) -> float:
    """Milliseconds per step outside the models' own forward calls, prefill left out."""
    from model.common.decode import generate
    from model.common.sampling import Sampler

    spent = [0.0]
    originals = [(model, model.forward) for model in models]
    for model, forward in originals:

        def timed(*args, _forward=forward, **kwargs):
            begin = time.perf_counter()
            out = _forward(*args, **kwargs)
            spent[0] += time.perf_counter() - begin
            return out

        model.forward = timed
    outside = steps = 0.0
    drafter, stop, limit = decode
    readers = [target] + ([drafter.draft] if hasattr(drafter, "draft") else [])
    for ids in prompts:
        mark = _spent_before_steps(readers, spent)
        turn = generate(target, drafter, [ids], Sampler(), [0], stop, limit)[0]
        outside += (turn.wall_s - turn.prefill_s) - (spent[0] - mark())
        steps += len(turn.accept_lengths)
    for model, forward in originals:
        model.forward = forward
    return 1e3 * outside / steps


def _spent_before_steps(readers, spent):
    """A function that tells what `spent` was when a model first read a step's rows."""
    mark, reads = [], [(reader, reader.read) for reader in readers]
    for reader, read in reads:

        def first_read(*args, _read=read, **kwargs):
            mark.append(spent[0])
            return _read(*args, **kwargs)

        reader.read = first_read

    def value():
        for reader, read in reads:
            reader.read = read
        return mark[0]

    return value


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
    parser.add_argument("--no-compile", action="store_true")
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

    from model.common.drafter import EmptyDrafter, PerSequence
    from model.common.prompts import Prompter, load_tokenizer
    from model.common.questions import per_category, read_questions
    from model.common.target import Target, load_target
    from model.pld.drafter import PLDDrafter
    from model.sps.drafter import SpSDrafter

    torch.set_num_threads(args.num_threads or torch.get_num_threads())
    prompter = Prompter(load_tokenizer(args.model_path))
    questions = read_questions(ROOT / "data" / "mini_bench" / "question.jsonl")
    questions = per_category(questions, args.limit_per_category)
    prompts = [prompter.render(question["turns"], []) for question in questions]
    limit = args.max_new_tokens
    capacity = max(map(len, prompts)) + limit + 32
    target = load_target(args.model_path, "float32", "cpu", "eager")
    draft = load_target(args.drafter_path, "float32", "cpu", "eager")
    stop = prompter.stop_rules(target.model.generation_config)
    plain = load_target(args.model_path, "float32", "cpu", "eager").model
    plain.set_attn_implementation("sdpa")
    assistant = load_target(args.drafter_path, "float32", "cpu", "eager").model
    assistant.set_attn_implementation("sdpa")
    assistant.generation_config.num_assistant_tokens = 5
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    vanilla = EmptyDrafter()
    pld = PerSequence(lambda: PLDDrafter(3, 10, clamp=True))
    sps = SpSDrafter(draft, target, "constant", 5, 0.4)
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
        ours("vanilla eager", target, vanilla, stop, limit, "transformers generate"),
        ours("pld eager", target, pld, stop, limit, "transformers prompt lookup"),
        ours("sps eager", target, sps, stop, limit, "transformers assisted"),
    ]
    if not args.no_compile:
        compiled = Target(target.model, "compile")
        quick = Target(draft.model, "compile")
        padded = PerSequence(lambda: PLDDrafter(3, 10, clamp=True), pad_to=10)
        both = SpSDrafter(quick, compiled, "constant", 5, 0.4)
        compiled.reserve(1, capacity)
        quick.reserve(1, capacity)
        for drafter in (vanilla, padded, both):
            compiled.warm(capacity, drafter.shapes())
        contenders += [
            ours("vanilla compiled", compiled, vanilla, stop, limit, "transformers generate"),
            ours("pld compiled", compiled, padded, stop, limit, "transformers prompt lookup"),
            ours("sps compiled", compiled, both, stop, limit, "transformers assisted"),
        ]
    host = {
        name: outside_forwards(target, models, (drafter, stop, limit), prompts[:4])
        for name, drafter, models in (
            ("vanilla eager", vanilla, [target.model]),
            ("pld eager", pld, [target.model]),
            ("sps eager", sps, [target.model, draft.model]),
        )
    }
    return contenders, prompts, host


def report(contenders, host) -> None:
    """Tokens/s, ratio to transformers' best of the same kind, equality with vanilla's ids."""
    speed = {c.name: statistics.median(c.speeds) for c in contenders}
    reference = next(c for c in contenders if c.name == "vanilla eager").answers
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
