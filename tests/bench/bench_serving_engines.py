"""vLLM's server beside our loop, same weights and questions: verdicts, accept lengths, speed.

For every method a server is started, asked by model.engine.inference_engine and ended; our loop
answers the same questions, with drafts of the same size where it has such (bench_engines.py). The
table: tokens a step commits on both sides, which witnesses agree on vLLM's, equal.py's verdict on
vLLM's answers against our loop's vanilla, tokens/s on both sides. A/A stands below it: vLLM without
speculation, answered twice. Files and logs are kept in --output, and a second call resumes them.

vLLM lives in an environment of its own (bench_engines.py says how it is made). Speeds want a
machine with nothing else at work; accept lengths and verdicts do not.

Run:    python tests/bench/bench_serving_engines.py --vllm-python ENV/bin/python --output DIR
        python tests/bench/bench_serving_engines.py --vllm-python ENV/bin/python --output DIR
            --model-path data/models/smollm2 --methods vanilla,pld --num-threads 2
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import bench_engines
import bench_parts as parts

METHODS = "vanilla,pld,sps,eagle3,medusa"
SETTINGS = {  # of vLLM's CPU build
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
CONTEXT = 2048


def server_command(method: str, args) -> str:
    """vLLM's server of a method, for a shell."""
    config = bench_engines.speculative(method, args.output)
    settings = [f"{name}={value}" for name, value in SETTINGS.items()]
    settings += [f"{name}_NUM_THREADS={args.num_threads}" for name in ("OMP", "NUMBA")]
    command = [args.vllm_python, "-m", "vllm.entrypoints.cli.main", "serve", args.model_path]
    command += ["--served-model-name", "target", "--dtype", "float32", "--host", "127.0.0.1"]
    command += ["--port", str(args.port), "--max-model-len", str(CONTEXT), "--max-num-seqs", "4"]
    command += ["--enforce-eager"] if args.eager else []
    if config is not None:
        command += ["--per-request-spec-decode-metrics", "detailed"]
        command += ["--speculative-config", json.dumps(config)]
    return " ".join([*settings, shlex.join(command)])


def run_script(module: str, args, name: str, *flags) -> Path:
    """Run a method's, or the engine's, command; the path of its answers."""
    file = args.output / f"{name}.jsonl"
    command = [sys.executable, "-m", module, "--model-path", args.model_path, "--dtype", "float32"]
    command += ["--model-id", name, "--answer-file", str(file), "--warmup", "1"]
    command += ["--limit-per-category", str(args.limit_per_category)]
    command += ["--max-new-tokens", str(args.max_new_tokens)]
    command += ["--question-file", args.question_file] if args.question_file else []
    env = os.environ | {"OMP_NUM_THREADS": str(args.num_threads)}
    done = subprocess.run([*command, *map(str, flags)], cwd=parts.ROOT, env=env)
    if done.returncode not in (0, 1):
        raise SystemExit(f"bench_serving_engines: {module} of {name}: exit {done.returncode}")
    return file


def answered(method: str, args) -> dict[str, Path]:
    """{"ours", "vllm"}: both sides' answers of a method."""
    tree = args.output / "chain.json"
    tree.write_text(json.dumps(bench_engines.CHAIN))
    own = ["--device", "cpu", "--num-threads", args.num_threads, "--paired", 0]
    own += bench_engines.our_flags(method, tree)
    flags = ["--url", f"http://127.0.0.1:{args.port}"]
    flags += ["--engine-cmd", server_command(method, args)]
    flags += ["--aa"] if method == "vanilla" else []
    return {
        "ours": run_script(f"model.{method}.inference_{method}", args, f"ours-{method}", *own),
        "vllm": run_script("model.engine.inference_engine", args, f"vllm-{method}", *flags),
    }


def verdicts(found: dict[str, dict], args) -> list[dict]:
    """equal.py's result of every vLLM file against our loop's vanilla."""
    report = args.output / "equal.json"
    files = [str(found["vanilla"]["ours"]), *(str(sides["vllm"]) for sides in found.values())]
    command = [sys.executable, "evaluation/equal.py", *files, "--model-path", args.model_path]
    command += ["--device", "cpu", "--num-threads", str(args.num_threads), "--json", str(report)]
    command += ["--aa", str(args.output / "vllm-vanilla-aa.jsonl")]
    done = subprocess.run(command, cwd=parts.ROOT, capture_output=True, text=True)
    (args.output / "equal.txt").write_text(done.stdout + done.stderr)
    if not report.is_file():
        raise SystemExit(f"bench_serving_engines: equal.py: {done.stderr.strip()}")
    return json.loads(report.read_text())["results"]


def facts_of(path: Path) -> dict:
    """Mean accepted tokens, tokens/s of all answers, and the witnesses of a file's lengths."""
    from evaluation.answers.reader import read_answers

    questions = [q for q in read_answers(path).questions.values() if not q.error]
    choices = [choice for question in questions for choice in question.choices]
    known = [choice.accepted for choice in choices]
    evidence = {json.dumps(choice.evidence) for choice in choices if choice.evidence}
    tokens, steps = map(sum, zip(*known)) if None not in known else (0, 0)
    return {
        "accepted": tokens / steps if steps else None,
        "tokens_per_s": sum(sum(c.new_tokens) for c in choices)
        / sum(sum(c.wall_s) for c in choices),
        "evidence": [json.loads(text) for text in sorted(evidence)],
        "questions": len(questions),
    }


def evidence_text(found: list[dict]) -> str:
    """'per_step (usage, counters)', and the others that a file has."""
    texts = []
    for one in found:
        checked = ", ".join(one["checked"])
        texts.append("they disagree" if one["disagree"] else f"{one['source']} ({checked})")
    return "; ".join(texts) or "-"


def main(argv=None) -> None:
    """One table line a method."""
    from evaluation.answers.repeats import self_difference_line

    parser = parts.make_parser(__doc__, methods=METHODS, max_new_tokens=128, num_threads=1)
    parser.add_argument("--vllm-python", required=True, help="interpreter that has vLLM")
    parser.add_argument("--output", type=Path, required=True, help="folder of answers and logs")
    parser.add_argument("--model-path", default=parts.TARGET, help="with vanilla and pld only")
    parser.add_argument("--question-file", help="default: the mini bench")
    parser.add_argument("--limit-per-category", type=int, default=4)
    parser.add_argument("--port", type=int, default=18231)
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    args = parser.parse_args(argv)
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    args.model_path = str(Path(args.model_path).resolve())
    if args.methods[0] != "vanilla":
        parser.error("--methods: vanilla comes first, with which all are compared")
    found = {method: answered(method, args) for method in args.methods}
    results = verdicts(found, args)
    rows = []
    print(f"{'method':10}{'accepted':>9}{'vLLM':>7}{'differ':>9}  {'verdict':12}", end="")
    print(f"{'tokens/s':>9}{'vLLM':>8}  witnesses of vLLM's accept lengths")
    for (method, sides), result in zip(found.items(), results):
        ours, theirs = facts_of(sides["ours"]), facts_of(sides["vllm"])
        differ = result["questions"] - result["questions_equal"]
        verdict = result["judgement"]["verdict"]
        shown = f"{theirs['accepted']:.2f}" if theirs["accepted"] else "-"
        differs = f"{differ}/{result['questions']}"
        print(f"{method:10}{ours['accepted']:>9.2f}{shown:>7}{differs:>9}  {verdict:12}", end="")
        print(f"{ours['tokens_per_s']:>9.1f}{theirs['tokens_per_s']:>8.1f}", end="  ")
        print(evidence_text(theirs["evidence"]))
        rows.append({"method": method, "ours": ours, "vllm": theirs, "verdict": verdict})
    print(self_difference_line(results[0]["aa"]))
    (args.output / "table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
