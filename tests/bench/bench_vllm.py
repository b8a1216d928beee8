"""Speed of the loop against vLLM's CPU engine, method by method, all in one run on one machine.

Every vLLM contender is a process of its own that loads once and waits; the rounds alternate between
theirs and ours, so that clocks and neighbours drift into both, and a cell is the median over
rounds. Greedy, float32, batch 1, the same prompts as ids, as many drafted tokens on both sides; the
first round is not counted. Tokenising is on neither side's clock. vLLM's environment is described
in compare_vllm.py.

Run:    python tests/bench/bench_vllm.py --vllm-python /path/to/env/bin/python
        ... --methods vanilla,pld --rounds 3 --num-threads 2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "data" / "mini_models"
NUM_DRAFT = 4
CHAIN = [[0] * depth for depth in range(1, NUM_DRAFT + 1)]
METHODS = ("vanilla", "pld", "sps", "medusa", "eagle", "eagle3")
ENGINES = {"vLLM": False, "vLLM, enforce_eager": True}


def speculative(method: str, folder: Path) -> dict | None:
    """vLLM's speculative_config of a method; None for none."""
    if method == "vanilla":
        return None
    if method == "pld":
        config = {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    elif method == "sps":
        config = {"method": "draft_model", "model": str(MINI / "sps")}
    elif method == "medusa":
        config = {"method": "medusa", "model": packed_medusa(folder / "medusa")}
    else:
        config = {"method": method, "model": str(MINI / method)}
    return config | {"num_speculative_tokens": NUM_DRAFT}


def our_flags(method: str, tree: str) -> list[str]:
    """The same drafts from our command line."""
    return {
        "vanilla": [],
        "pld": ["--max-ngram", "3", "--num-draft", str(NUM_DRAFT), "--short", "clamp"],
        "sps": ["--drafter-path", str(MINI / "sps"), "--schedule", "constant"]
        + ["--num-draft", str(NUM_DRAFT)],
        "medusa": ["--medusa-path", str(MINI / "medusa"), "--tree", tree],
        "eagle": ["--eagle-path", str(MINI / "eagle"), "--tree", tree],
        "eagle3": ["--eagle-path", str(MINI / "eagle3"), "--draft-top-k", "1"]
        + ["--depth", str(NUM_DRAFT - 1), "--total-token", str(NUM_DRAFT + 1)],
    }[method]


def packed_medusa(folder: Path) -> str:
    """The mini heads under vLLM's names: blocks.K.layers.J, lm_heads.K, the first NUM_DRAFT."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(exist_ok=True)
    packed = {}
    for name, tensor in load_file(MINI / "medusa" / "medusa_lm_head.safetensors").items():
        head, layer, *rest = name.split(".")
        if int(head) < NUM_DRAFT:
            block = rest[0] == "linear"
            to = f"blocks.{head}.layers.{layer}.{rest[1]}" if block else f"lm_heads.{head}.weight"
            packed[to] = tensor
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    hidden, vocab = packed["lm_heads.0.weight"].shape[::-1]
    config = {"model_type": "medusa", "architectures": ["MedusaModel"], "num_heads": NUM_DRAFT}
    config |= {"hidden_size": hidden, "vocab_size": vocab, "truncated_vocab_size": vocab}
    config |= {"num_hidden_layers": 1, "medusa_fc_bias": True, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def serve(request: dict, out) -> None:
    """In vLLM's environment: a round of all prompts for every line on stdin."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(request["num_threads"])
    options = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 1}
    options |= {"enforce_eager": request["eager"], "enable_prefix_caching": False}
    llm = LLM(request["target"], speculative_config=request["speculative"], **options)
    sampling = SamplingParams(temperature=0, max_tokens=request["limit"], detokenize=False)
    print("ready", file=out, flush=True)
    for _ in sys.stdin:
        ids, begin = [], time.perf_counter()
        for prompt in request["prompts"]:
            done = llm.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)
            ids.append(list(done[0].outputs[0].token_ids))
        seconds = time.perf_counter() - begin
        print(json.dumps({"ids": ids, "seconds": seconds}), file=out, flush=True)


class Theirs:
    """A vLLM process that decodes all prompts when asked."""

    def __init__(self, name: str, method: str, request: dict, args, folder: Path):
        self.name, self.method, self.speeds = name, method, []
        file = folder / "request.json"
        file.write_text(json.dumps(request))
        read, write = os.pipe()
        command = [args.vllm_python, __file__, "--serve", str(file), str(write)]
        self.log = (folder / f"{name}-{method}.log".replace(" ", "")).open("w+")
        env = os.environ | {"OMP_NUM_THREADS": str(args.num_threads)}
        streams = {"stdout": self.log, "stderr": subprocess.STDOUT, "stdin": subprocess.PIPE}
        self.process = subprocess.Popen(
            command, pass_fds=[write], cwd=folder, env=env, text=True, **streams
        )
        os.close(write)
        self.answers = os.fdopen(read)
        self.alive = self.answers.readline().strip() == "ready"

    def round(self):
        """(ids, seconds), or None where vLLM cannot run the method."""
        if self.alive:
            print("go", file=self.process.stdin, flush=True)
            line = self.answers.readline()
            self.alive = bool(line)
        if not self.alive:
            return None
        done = json.loads(line)
        return done["ids"], done["seconds"]

    def reason(self) -> str:
        """The last error that the process printed."""
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if "Error" in line]
        return lines[-1].strip()[:160] if lines else "no error line"

    def close(self):
        """End the process and wait for it."""
        self.process.stdin.close()
        self.process.wait(60)


class Ours:
    """A method in the loop, by runtime; everything compiled before the first round."""

    alive = True

    def __init__(self, runtime: str, method: str, args, prompts, tree: str):
        from bench_drafters import build_script
        from bench_overhead import warm_up

        from model.common.prompts.prompter import Prompter, load_tokenizer
        from model.common.target.loading import load_target

        self.name, self.method, self.speeds = f"ours, {runtime}", method, []
        self.prompts, self.limit = prompts, args.max_new_tokens
        path = str(MINI / "target")
        self.target = load_target(path, "float32", "cpu", runtime)
        flags = ["--model-path", path, "--dtype", "float32", "--runtime", runtime]
        flags += our_flags(method, tree)
        self.drafter = build_script(method, flags, self.target)
        tokenizer = load_tokenizer(path)
        self.stop = Prompter(tokenizer).stop_rules(self.target.model.generation_config)
        self.stop.strings = ()
        capacity = max(map(len, prompts)) + self.limit
        warm_up(self.target, self.drafter, self.stop, prompts[0], capacity)

    def round(self, prompts=None):
        """(ids, seconds) of all prompts."""
        from model.common.loop.decode import generate
        from model.common.loop.sampling import Sampler

        ids, begin = [], time.perf_counter()
        for prompt in prompts or self.prompts:
            target, drafter, limit = self.target, self.drafter, self.limit
            turn = generate(target, drafter, [prompt], Sampler(), [0], self.stop, limit)[0]
            ids.append(turn.output_ids)
        return ids, time.perf_counter() - begin

    def close(self):
        """Nothing to end."""


def parse_args():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vllm-python", required=True, help="interpreter that has vLLM")
    parser.add_argument("--methods", default=",".join(METHODS), help="comma list")
    parser.add_argument("--runtimes", default="eager,compile", help="ours, comma list")
    parser.add_argument("--limit-per-category", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=1, help="of both sides")
    return parser.parse_args()


def main():
    """One table line for each method and contender, and one JSON line."""
    args = parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]
    os.environ["OMP_NUM_THREADS"] = str(args.num_threads)
    import torch

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.questions import per_category, read_questions

    torch.set_num_threads(args.num_threads)
    prompter = Prompter(load_tokenizer(str(MINI / "target")))
    questions = read_questions(ROOT / "data/mini_bench/question.jsonl")
    questions = per_category(questions, args.limit_per_category)
    prompts = [list(prompter.render(question["turns"], [])) for question in questions]
    rows, reference = [], None
    print(f"{'method':10}{'contender':24}{'tokens/s':>10}{'ratio':>8}{'ids as vanilla':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods.split(","):
            found, reference = one_method(method, args, prompts, reference, Path(folder))
            rows += found
    print(json.dumps({"tool": "bench_vllm", "num_threads": args.num_threads, "rows": rows}))


def one_method(method: str, args, prompts, reference, folder: Path):
    """(rows, reference ids) of a method: its contenders in turn, round after round."""
    tree = folder / "chain.json"
    tree.write_text(json.dumps(CHAIN))
    request = {"target": str(MINI / "target"), "speculative": speculative(method, folder)}
    request |= {"prompts": prompts, "limit": args.max_new_tokens, "num_threads": args.num_threads}
    contenders = [
        Theirs(name, method, request | {"eager": eager}, args, folder)
        for name, eager in ENGINES.items()
    ]
    contenders += [Ours(run, method, args, prompts, str(tree)) for run in args.runtimes.split(",")]
    same = {}
    for number in range(args.rounds + 1):
        for contender in contenders if number % 2 else contenders[::-1]:
            result = contender.round()
            if result is None:
                continue
            ids, seconds = result
            reference = reference or ids
            same[contender.name] = sum(a == b for a, b in zip(ids, reference))
            if number:
                contender.speeds.append(sum(map(len, ids)) / seconds)
    for contender in contenders:
        contender.close()
    return [row_of(c, contenders, same, len(prompts)) for c in contenders], reference


def row_of(contender, contenders, same, num_prompts: int) -> dict:
    """Print and return a contender's row; ratio to vLLM's best of the method."""
    if not contender.speeds:
        print(f"{contender.method:10}{contender.name:24}  cannot run: {contender.reason()}")
        return {"method": contender.method, "name": contender.name, "tokens_per_s": None}
    medians = {c.name: statistics.median(c.speeds) for c in contenders if c.speeds}
    best = max((medians[name] for name in ENGINES if name in medians), default=None)
    speed, ids = medians[contender.name], same[contender.name]
    ratio = speed / best if best else None
    cells = f"{speed:>10.1f}{ratio and f'{ratio:.2f}' or '':>8}{f'{ids}/{num_prompts}':>16}"
    print(f"{contender.method:10}{contender.name:24}{cells}", flush=True)
    row = {"method": contender.method, "name": contender.name, "tokens_per_s": round(speed, 1)}
    return row | {"ratio_to_vllm": ratio and round(ratio, 3), "ids_as_vanilla": ids}


if __name__ == "__main__":
    if "--serve" in sys.argv:
        with os.fdopen(int(sys.argv[-1]), "w") as pipe:
            serve(json.loads(Path(sys.argv[-2]).read_text()), pipe)
    else:
        main()
