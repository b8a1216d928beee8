"""Load runs of several methods: latencies, goodput and knee at rates, saturation, overhead.

First vanilla answers all requests at once in B slots: requests a second at saturation, of which the
rates are shares, and from whose requests it takes the limits of --slo where none are given: three
times the TTFT and TPOT of a request that is alone. Then every method's own command runs a sweep of
the same prompts at these rates, and at rate inf. Figures are those of evaluation/serving.py.

    good      share of requests within the limits; the knee is the highest rate at which it is 95 %
    client    seconds spent in the queue of the load run (handing over, texts, records), of the busy
              ones: the overhead of the harness
    same ids  requests whose ids are those of vanilla in one slot; in float32 or float64 every one
              has to be, or the exit status is 1
    static    tokens/s of refilled slots over those of the same slots as static batches, on requests
              of exponential lengths (mean a quarter of --max-new-tokens), medians over rounds

Run:    python tests/bench/bench_load.py                             (mini models, 12 minutes)
        python tests/bench/bench_load.py --model-path data/models/smollm2 --questions 48
            --max-new-tokens 64 --duration 120 --methods vanilla,pld,eagle2 --num-threads 2
            --question-file spec_bench.jsonl
"""

import json
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench_parts as parts

COLUMNS = {  # heading: (key, format, factor)
    "requests": ("requests", "d", 1),
    "tokens/s": ("tokens_per_s", ".1f", 1),
    "ttft p50": ("ttft_p50_ms", ".1f", 1),
    "p99 (ms)": ("ttft_p99_ms", ".1f", 1),
    "tpot p50": ("tpot_p50_ms", ".2f", 1),
    "p99 (ms)  ": ("tpot_p99_ms", ".2f", 1),
    "good %": ("good", ".1f", 100),
    "accepted": ("accepted", ".2f", 1),
    "client %": ("client", ".2f", 100),
    "same ids": ("same_ids", "d", 1),
}


def parse_args(argv=None):
    """Flags; lists are separated by commas."""
    from model.common.args import at_least, between

    parser = parts.make_parser(
        __doc__,
        methods="vanilla,pld,sps,eagle2",
        model_path=parts.TARGET,
        dtype="float32",
        device="cpu",
        questions=64,
        max_new_tokens=128,
        rounds=3,
        num_threads=1,
        output=None,
    )
    add = parser.add_argument
    add("--slots", type=at_least(1), default=4, help="B, of --batch-size")
    add("--shares", default="0.3,0.6,0.9,1.2", help="rates, of vanilla's at saturation")
    add("--duration", type=between(1, 1e5), default=30.0, help="of arrivals at a rate (seconds)")
    add("--slo", help="ttft=S,tpot=S (default: see above)")
    add(
        "--question-file",
        default=str(parts.ROOT / "data/mini_bench/question.jsonl"),
        help="prompts",
    )
    add("--flags", action="append", default=[], help="METHOD=FLAGS, its own ones")
    args = parser.parse_args(argv)
    try:
        args.shares = [float(share) for share in args.shares.split(",")]
    except ValueError:
        parser.error(f"--shares {args.shares}: numbers separated by commas are needed")
    if min(args.shares) <= 0:
        parser.error("--shares: a rate is above 0")
    try:
        args.slo = args.slo and {
            name: float(value) for name, _, value in (p.partition("=") for p in args.slo.split(","))
        }
    except ValueError:
        parser.error(f"--slo {args.slo}: ttft=S,tpot=S is needed")
    args.methods = list(dict.fromkeys(["vanilla", *args.methods]))
    args.flags = {text.partition("=")[0]: text.partition("=")[2] for text in args.flags}
    for method in args.flags:
        if method not in parts.METHODS:
            parser.error(f"--flags: no method {method}")
    return args


class Runs:
    """Load runs of methods' commands, into a folder."""

    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder

    def answer(self, method: str, name: str, *flags) -> None:
        """One command; its files are NAME-LOAD.jsonl."""
        args = self.args
        command = [sys.executable, "-m", f"model.{method}.inference_{method}"]
        command += ["--model-path", args.model_path, "--question-file", args.question_file]
        command += ["--model-id", str(self.folder / name), "--max-new-tokens", args.max_new_tokens]
        command += ["--dtype", args.dtype, "--device", args.device, "--overwrite"]
        command += ["--num-threads", args.num_threads] if args.num_threads else []
        command += [*flags, *shlex.split(args.flags.get(method, ""))]
        done = subprocess.run([str(part) for part in command], cwd=parts.ROOT)
        if done.returncode > 1:
            sys.exit(done.returncode)

    def figures(self, name: str, slo=None) -> dict:
        """serving.py's figures of a file, with its ids and the meta's run_s."""
        from evaluation.service.figures import figures_of
        from evaluation.service.requests import of_answers

        path = self.folder / f"{name}.jsonl"
        found = figures_of(of_answers(path), slo)
        meta = json.loads(path.with_suffix(".meta.json").read_text(encoding="utf-8"))
        return found | {"ids": self.ids(path), "run_s": meta["run_s"]}

    @staticmethod
    def ids(path: Path) -> dict:
        """{prompt's id: output ids}; a prompt that was asked again counts under its own."""
        found = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["choices"]:
                name = str(record["question_id"]).partition("@")[0]
                found[name] = record["choices"][0]["output_ids"][0]
        return found


def row_of(method: str, rate: str, found: dict, known: dict) -> dict:
    """A row of the table; known: the ids of one slot, {} where these are they."""
    row = {
        "method": method,
        "rate": rate,
        "requests": found["requests"],
        "failed": found["failed"],
        "requests_per_s": found["request_throughput"],
        "tokens_per_s": found["token_throughput"],
        "good": (found["goodput"] or {}).get("share"),
        "accepted": (found["acceptance"] or {}).get("mean_accepted"),
        "client": found["run_s"]["client"] / found["busy_s"],
        "same_ids": sum(known.get(name) == ids for name, ids in found["ids"].items()),
        "prompts": len(found["ids"]),
    }
    for name in ("ttft", "tpot"):
        for percent in ("p50", "p99"):
            row[f"{name}_{percent}_ms"] = 1e3 * (found[name] or {}).get(percent, float("nan"))
    return row


def sweeps(args, runs: Runs) -> tuple[list[dict], dict]:
    """(rows of all methods and rates, the limits that requests had to meet)."""
    slots, at_once = (
        ["--batch-size", args.slots],
        ["--rate", "inf", "--num-prompts", args.questions],
    )
    runs.answer("vanilla", "scale", *at_once, *slots)
    saturated = runs.figures("scale-rate-inf")["request_throughput"]
    rates = [f"{share * saturated:.3g}" for share in args.shares]
    needed = max(float(rate) for rate in rates) * args.duration * 1.5 + args.questions
    num = min(int(needed), parts_of(args))
    runs.answer("vanilla", "one", "--num-prompts", num, "--warmup", 1)
    one = runs.figures("one-clients-1")
    slo = args.slo or {name: 3 * one[name]["p50"] for name in ("ttft", "tpot")}
    rows = []
    for method in args.methods:
        runs.answer(method, method, "--rate", ",".join(rates), "--duration", args.duration, *slots)
        runs.answer(method, method, *at_once, *slots)
        for rate in [*rates, "inf"]:
            found = runs.figures(f"{method}-rate-{rate}", slo)
            rows.append(row_of(method, rate, found, one["ids"]))
    return rows, slo


def parts_of(args) -> int:
    """How many prompts the questions have."""
    from model.common.args import make_parser
    from model.common.load.requests import read_prompts

    flags = ["--model-path", args.model_path, "--question-file", args.question_file]
    return len(read_prompts(make_parser("load", "", lambda group: None).parse_args(flags)))


class Slots:
    """The same requests of unequal lengths through B slots: refilled, or as static batches."""

    def __init__(self, name: str, args, given, group: int):
        self.name, self.args, self.group = name, args, group
        self.target, self.drafter, self.stop, self.requests = given
        self.speeds: list[float] = []

    def round(self) -> None:
        """Decode all requests once, `group` of them at a time."""
        from time import perf_counter

        from model.common.loop.decode import Loop
        from model.common.loop.sampling import Sampler
        from model.common.loop.source import Prompts

        capacity = max(len(r.ids) + r.limit for r in self.requests)
        loop = Loop(self.target, self.drafter, Sampler(), self.stop, self.args.slots, capacity)
        begin, tokens = perf_counter(), 0
        for first in range(0, len(self.requests), self.group):
            source = Prompts(self.requests[first : first + self.group])
            loop.run(source)
            tokens += sum(len(turn.output_ids) for turn in source.answers())
        self.speeds.append(tokens / (perf_counter() - begin))


def static_ratio(args) -> list[dict]:
    """Rows {method, refilled, static, ratio}: tokens/s with vanilla and the first other method."""
    import torch

    from model.common.loop.source import Request
    from model.common.loop.turns import StopRules
    from model.common.target.loading import load_target

    torch.set_num_threads(args.num_threads or torch.get_num_threads())
    target = load_target(args.model_path, args.dtype, args.device, "eager")
    _, prompts = parts.read_bench(args.model_path, args.questions, args.question_file)
    chance, most = random.Random(0), args.max_new_tokens
    limits = [min(most, 1 + int(chance.expovariate(4 / most))) for _ in prompts]
    requests = [Request(ids, limit) for ids, limit in zip(prompts, limits)]
    shared = ["--model-path", args.model_path, "--dtype", args.dtype, "--device", args.device]
    rows = []
    for method in args.methods[:2]:
        own = shlex.split(args.flags.get(method, ""))
        drafter = parts.build_script(method, [*shared, *own], target)
        given = target, drafter, StopRules(), requests
        contenders = [
            Slots("refilled", args, given, len(requests)),
            Slots("static", args, given, args.slots),
        ]
        parts.run_rounds(contenders, args.rounds)
        refilled, static = (statistics.median(c.speeds) for c in contenders)
        row = {"method": method, "refilled": refilled, "static": static}
        rows.append(row | {"ratio": refilled / static})
    return rows


def report(args, rows: list[dict], slo: dict, static: list[dict]) -> int:
    """Print the tables; the exit status."""
    limits = ", ".join(f"{name} <= {1e3 * bound:.1f} ms" for name, bound in slo.items())
    print(f"good: {limits}\n{'method':12}{'rate':>8}{parts.header(COLUMNS)}")
    for row in rows:
        print(f"{row['method']:12}{row['rate']:>8}{parts.cells(row, COLUMNS)}")
    knees = {}
    for method in args.methods:
        good = [row for row in rows if row["method"] == method and (row["good"] or 0) >= 0.95]
        knees[method] = max((float(r["rate"]) for r in good if r["rate"] != "inf"), default=None)
        print(f"knee of {method}: {knees[method] or 'below these rates'}")
    for row in static:
        speeds = f"refilled {row['refilled']:.1f}, static {row['static']:.1f} tokens/s"
        print(f"static, {row['method']}: {speeds}, {row['ratio']:.2f}x")
    parts.write_json("bench_load", args, rows=rows, limits=slo, knees=knees, static=static)
    differ = any(row["same_ids"] < row["prompts"] or row["failed"] for row in rows)
    return 1 if differ and args.dtype in ("float32", "float64") else 0


def main(argv=None) -> None:
    """Sweeps, then slots; exit 1 where float32 ids differ or a request failed."""
    args = parse_args(argv)
    from model.common.errors import ends_in_one_line

    with ends_in_one_line("bench_load.py"), tempfile.TemporaryDirectory() as folder:
        rows, slo = sweeps(args, Runs(args, Path(folder)))
        static = static_ratio(args)
    sys.exit(report(args, rows, slo, static))


if __name__ == "__main__":
    main()
