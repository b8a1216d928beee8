"""What drafting costs: host time of the drafters without weights, and heads beside their target.

For each method and context length: microseconds per propose() and per observe() through the Drafter
interface (list methods lifted by PerSequence, tensors made, B = 1), median over the steps of one
sequence. The text is a stream of Zipf tokens that repeats itself now and then; every step commits
what the stream says next, as many tokens as the draft guessed right plus one. Tensor methods get
random logits of the given vocabulary, so their cost includes the top-k or argmax over it.

Trained heads draft with the mini models instead: milliseconds per step of draft and verification
and the share of the first in the second, eager and compiled.

Run:    python tests/bench/bench_drafters.py
        python tests/bench/bench_drafters.py --methods medusa,hydra,eagle,eagle2,eagle3
        python tests/bench/bench_drafters.py --vocab-size 32000 --steps 300 --methods pld,samd
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]

CONTEXTS = (256, 2048, 8192, 32768)
MINI = ROOT / "data" / "mini_models"
HEADS = {name: (f"--{name}-path", name) for name in ("medusa", "hydra", "eagle")}
HEADS |= {"eagle2": ("--eagle-path", "eagle"), "eagle3": ("--eagle-path", "eagle3")}


def stream(num_tokens: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Zipf tokens; one time in forty the next 5 to 40 are copied from earlier text."""
    rng = random.Random(seed)
    ids: list[int] = []
    while len(ids) < num_tokens:
        if len(ids) > 100 and rng.random() < 1 / 40:
            begin = rng.randrange(len(ids) - 50)
            ids += ids[begin : begin + rng.randint(5, 40)]
        else:
            ids.append(min(int(vocab_size * rng.random() ** 4), vocab_size - 1))
    return ids[:num_tokens]


class Stub:
    """What drafters without weights ask of a target."""

    def __init__(self, vocab_size: int):
        import torch

        from model.common.target.runtime import make_runtime

        self.vocab_size, self.device = vocab_size, torch.device("cpu")
        self.runtime = make_runtime("eager", self.device)


def make_drafters(args, names) -> dict:
    """Drafters by name, as their commands build them."""
    target, flags = Stub(args.vocab_size), ["--model-path", "none"]
    return {
        name: rest_drafter(args) if name == "rest" else build_script(name, flags, target)
        for name in names
    }


class Vocabulary(dict):
    """What a datastore asks of a tokenizer."""

    get_vocab = dict.copy


def rest_drafter(args):
    """REST on a datastore of args.store_tokens Zipf tokens, built in a temporary folder."""
    from model.common.contract.sequence import PerSequence
    from model.rest.datastore import open_datastore
    from model.rest.drafter import RESTDrafter
    from model.rest.retriever import Retriever
    from model.rest.writer import Writer, settings_of

    vocabulary = Vocabulary((f"t{i}", i) for i in range(args.vocab_size))
    source = {"name": "zipf", "num_files": 0, "bytes": 0, "sha256": ""}
    folder = tempfile.mkdtemp()
    writer = Writer(folder, settings_of(vocabulary, "zipf", source, args.store_tokens + 2))
    writer.add(stream(args.store_tokens, args.vocab_size, seed=1), True)
    writer.finish(0)
    retriever = Retriever(open_datastore(folder))
    shutil.rmtree(folder)  # the maps keep the files alive
    return PerSequence(lambda: RESTDrafter(retriever), 64, 10)


def measure(drafter, context: int, args) -> dict:
    """Median microseconds of propose() and observe() after `context` tokens."""
    import torch

    from model.common.contract.drafter import Step
    from model.common.loop.sampling import Sampler

    text = stream(context + 12 * args.steps + 100, args.vocab_size)
    ids = text[:context]
    prompt = torch.tensor([ids[:-1]])
    sampler = Sampler()
    sampler.reserve(1, prompt.device)
    sampler.begin([0], [0], [len(text)])
    drafter.reserve(1, len(text), sampler)
    drafter.start(prefill(prompt, ids, len(text)))
    end, spent = context, {"propose": [], "observe": []}
    logits = torch.randn(1, 512, args.vocab_size)
    for _ in range(args.steps):
        begin = time.perf_counter()
        draft = drafter.propose()
        spent["propose"].append(time.perf_counter() - begin)
        new = text[end : end + 1 + right_tokens(draft, text[end:])]
        tokens = torch.cat([torch.tensor([[text[end - 1]]]), draft.tokens], 1)
        step = Step(
            slots=[0],
            tokens=tokens,
            logits=logits[:, : tokens.shape[1]],
            path=torch.arange(len(new))[None],
            count=torch.tensor([len(new)]),
            next_token=torch.tensor([new[-1]]),
            new_tokens=torch.tensor([new]),
            host_ids=[new],
            max_committed=end + len(new),
        )
        begin = time.perf_counter()
        drafter.observe(step)
        spent["observe"].append(time.perf_counter() - begin)
        end += len(new)
    return {name: 1e6 * statistics.median(times) for name, times in spent.items()}


def prefill(prompt, ids, max_length: int):
    """The Step of a prompt whose first generated token is the last of ids."""
    import torch

    from model.common.contract.drafter import Step

    root = torch.tensor([ids[-1]])
    return Step(
        slots=[0],
        tokens=prompt,
        path=torch.arange(prompt.shape[1])[None],
        count=torch.tensor([prompt.shape[1]]),
        next_token=root,
        new_tokens=torch.cat([prompt[:, 1:], root[:, None]], 1),
        host_ids=[ids],
        max_committed=len(ids),
        continues=[False],
        max_lengths=[max_length],
    )


def head_rows(names, rounds: int = 3) -> list[dict]:
    """Milliseconds per step of the heads' drafts and of their verification, mini models, B = 1."""
    from bench_overhead import warm_up

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import per_category, read_questions
    from model.common.target.loading import load_target

    path = str(MINI / "target")
    prompter = Prompter(load_tokenizer(path))
    questions = per_category(read_questions(ROOT / "data/mini_bench/question.jsonl"), 1)
    prompts = [prompter.render(question["turns"], []) for question in questions]
    rows = []
    for runtime in ("eager", "compile"):
        target = load_target(path, "float32", "cpu", runtime)
        stop = prompter.stop_rules(target.model.generation_config)
        for name in names:
            drafter = build_head(name, path, target, runtime)
            warm_up(target, drafter, stop, prompts[0], max(map(len, prompts)) + 128)
            phases = [head_steps(target, drafter, prompts, stop) for _ in range(rounds)]
            draft, verify = (min(times) for times in zip(*phases))
            cells = {"draft_ms": round(draft, 3), "verify_ms": round(verify, 3)}
            rows.append({"method": name, "runtime": runtime, **cells})
    return rows


def build_head(name: str, model_path: str, target, runtime: str):
    """A method's drafter with its mini head, as its script builds it."""
    flag, folder = HEADS[name]
    argv = ["--model-path", model_path, "--runtime", runtime, flag, str(MINI / folder)]
    return build_script(name, argv, target)


def build_script(name: str, argv: list[str], target):
    """The drafter of a method's command line."""
    import importlib

    from model.common import args as arguments

    script = importlib.import_module(f"model.{name}.inference_{name}")
    parser = arguments.make_parser(name, script.__doc__, script.add_args)
    return script.build(parser.parse_args(argv), target)


def head_steps(target, drafter, prompts, stop) -> tuple[float, float]:
    """Mean milliseconds per step of draft and verification over the prompts' answers."""
    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler

    spent = {"draft": [], "verify": []}
    for ids in prompts:
        turn = generate(target, drafter, [ids], Sampler(), [0], stop, 96)[0]
        for phase, times in spent.items():
            times += turn.phase_s[phase]
    return tuple(1e3 * statistics.fmean(times) for times in spent.values())


def print_heads(rows) -> None:
    """The table of head_rows."""
    print(f"{'ms per step':12}{'runtime':10}{'draft':>10}{'verify':>10}{'share':>10}")
    for row in rows:
        share = row["draft_ms"] / row["verify_ms"]
        cells = f"{row['draft_ms']:>10}{row['verify_ms']:>10}{share:>10.0%}"
        print(f"{row['method']:12}{row['runtime']:10}{cells}")


def right_tokens(draft, text) -> int:
    """Tokens of the text that the draft guessed right, at most 10."""
    tokens, parents = draft.tokens[0].tolist(), draft.layout.parents[0].tolist()
    probes = draft.probe.tolist() if draft.probe is not None else [False] * len(tokens)
    at, right = -1, 0
    for node, (token, parent) in enumerate(zip(tokens, parents)):
        if right < 10 and parent == at and token == text[right] and not probes[node]:
            at, right = node, right + 1
    return right


def main():
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--store-tokens", type=int, default=10_000_000, help="of REST's datastore")
    parser.add_argument("--methods", default="pld,nasd,samd,lookahead,recycling,rest")
    parser.add_argument("--num-threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.num_threads)
    names = args.methods.split(",")
    if heads := [name for name in names if name in HEADS]:
        rows = head_rows(heads)
        print_heads(rows)
        print(json.dumps({"tool": "bench_drafters", "heads": rows}))
    names = [name for name in names if name not in HEADS]
    if not names:
        return
    rows = []
    print(f"{'us per call':12}{'':10}" + "".join(f"{n:>10}" for n in CONTEXTS))
    for name, drafter in make_drafters(args, names).items():
        cells = [measure(drafter, context, args) for context in CONTEXTS]
        for call in ("propose", "observe"):
            values = [round(cell[call], 1) for cell in cells]
            rows.append({"method": name, "call": call, "us": dict(zip(CONTEXTS, values))})
            print(f"{name:12}{call:10}" + "".join(f"{value:>10}" for value in values))
    print(json.dumps({"tool": "bench_drafters", "vocab_size": args.vocab_size, "rows": rows}))


if __name__ == "__main__":
    main()
