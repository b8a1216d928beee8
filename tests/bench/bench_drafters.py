"""What drafting costs: host time of the drafters without weights.

For each method and context length: microseconds per propose() and per observe() through the Drafter
interface (list methods lifted by PerSequence, tensors made, B = 1), median over the steps of one
sequence. The text is a stream of Zipf tokens that repeats itself now and then; every step commits
what the stream says next, as many tokens as the draft guessed right plus one. Tensor methods get
random logits of the given vocabulary, so their cost includes the top-k or argmax over it. REST has
a datastore of Zipf tokens. What heads cost beside their target, evaluation/speed.py says of a run.

Run:    python tests/bench/bench_drafters.py
        python tests/bench/bench_drafters.py --vocab-size 32000 --steps 300 --methods pld,samd
"""

import random
import statistics
import tempfile
import time
from types import SimpleNamespace

import bench_parts as parts

CONTEXTS = (256, 2048, 8192, 32768)


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


def make_drafter(method: str, args, folder: str):
    """A drafter as its command builds it; folder: of REST's datastore."""
    import torch

    if method != "rest":
        target = SimpleNamespace(vocab_size=args.vocab_size, device=torch.device("cpu"))
        return parts.build_script(method, ["--model-path", "none"], target)
    from rest_stores import make_store

    from model.rest.drafter import RESTDrafter
    from model.rest.retriever import Retriever

    text = stream(args.store_tokens, args.vocab_size, seed=1)
    store = make_store(folder, [text], args.vocab_size, args.store_tokens + 2)
    return RESTDrafter(Retriever(store))


def measure(drafter, context: int, args) -> dict:
    """Median microseconds of propose() and observe() after `context` tokens."""
    import torch
    from steps import chain_step, prompt_step

    from model.common.loop.sampling import Sampler

    text = stream(context + 12 * args.steps + 100, args.vocab_size)
    sampler = Sampler()
    sampler.reserve(1, torch.device("cpu"))
    sampler.begin([0], [0], [len(text)])
    drafter.reserve(1, len(text), sampler)
    drafter.start(prompt_step([text[:context]], [len(text)]))
    end, spent = context, {"propose": [], "observe": []}
    logits = torch.randn(1, 512, args.vocab_size)
    for _ in range(args.steps):
        begin = time.perf_counter()
        draft = drafter.propose()
        spent["propose"].append(time.perf_counter() - begin)
        new = text[end : end + 1 + right_tokens(draft, text[end:])]
        step = chain_step([new], end + len(new))
        step.tokens = torch.cat([torch.tensor([[text[end - 1]]]), draft.tokens], 1)
        step.logits = logits[:, : step.tokens.shape[1]]
        begin = time.perf_counter()
        drafter.observe(step)
        spent["observe"].append(time.perf_counter() - begin)
        end += len(new)
    return {name: 1e6 * statistics.median(times) for name, times in spent.items()}


def right_tokens(draft, text) -> int:
    """Tokens of the text that the draft guessed right, at most 10."""
    tokens, parents = draft.tokens[0].tolist(), draft.layout.parents[0].tolist()
    probes = draft.probe.tolist() if draft.probe is not None else [False] * len(tokens)
    at, right = -1, 0
    for node, (token, parent) in enumerate(zip(tokens, parents)):
        if right < 10 and parent == at and token == text[right] and not probes[node]:
            at, right = node, right + 1
    return right


def main(argv=None) -> None:
    """Print the table."""
    from model.common.args import at_least

    methods = "pld,nasd,samd,suffix,lookahead,recycling,rest"
    parser = parts.make_parser(__doc__, methods=methods, num_threads=1, output=None)
    add = parser.add_argument
    add("--vocab-size", type=at_least(100), default=32000, help="of target and text")
    add("--steps", type=at_least(1), default=200, help="timed at every context")
    add("--store-tokens", type=at_least(1000), default=10_000_000, help="of REST's datastore")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(args.num_threads)
    rows = []
    print(f"{'us per call':22}" + "".join(f"{n:>10}" for n in CONTEXTS))
    with tempfile.TemporaryDirectory() as folder:
        for name in args.methods:
            drafter = make_drafter(name, args, folder)
            spent = [measure(drafter, context, args) for context in CONTEXTS]
            for call in ("propose", "observe"):
                values = [round(cell[call], 1) for cell in spent]
                rows.append({"method": name, "call": call, "us": dict(zip(CONTEXTS, values))})
                print(f"{name:12}{call:10}" + "".join(f"{value:>10}" for value in values))
    parts.write_json("bench_drafters", args, rows=rows)


if __name__ == "__main__":
    main()
