"""All contenders on one GPU at the size of a published target, in one command of limited time.

The mini target's twin (the same function at the cost of a 7B model, nothing to download) decodes
the same questions with every contender, one after another in order of importance. The budget is
shared out: a contender that reaches its part stops after the question in flight ("cut"), and what
does not fit at all is listed as not run. Everything so far is written to --output after each.

    tokens/s  new tokens / wall time, prefill included        step    (wall - prefill) / steps
    bound     bytes that a step has to read over the bandwidth measured here, as a share of verify
              (of the step for generate, whose phases are not known)
    outside   share of the step that is neither the drafter's nor the target's: commit and rest;
              for vanilla the empty draft too
    speedup   over the fastest vanilla, by totals over the questions that both answered
    ids       answers equal to those of the first vanilla; below the table the largest gap between
              the two tokens' logits at a first difference, by teacher forcing in the same dtype
              (ulps: steps of that dtype at the best logit; a few are a tie that rounding decides)

Run:    python tests/bench/bench_gpu.py --output bench_gpu.json              (one GPU, 9 minutes)
        python tests/bench/bench_gpu.py --scale-to 512x12x1024 --device cpu --dtype float32
            --questions 2 --max-new-tokens 16 --output try.json
"""

import gc
import json
import math
import os
import statistics
import sys
import time
import traceback
from pathlib import Path

import bench_parts as parts

BEGIN = time.perf_counter()
CONTENDERS = {  # name: (method, runtime: None = --runtime), in order of importance
    "vanilla": ("vanilla", None),
    "eagle2": ("eagle2", None),
    "sps": ("sps", None),
    "medusa": ("medusa", None),
    "eagle3": ("eagle3", None),
    "pld": ("pld", None),
    "generate": ("vanilla", "generate"),
    "vanilla-eager": ("vanilla", "eager"),
    "recycling": ("recycling", None),
    "eagle": ("eagle", None),
    "eagle2-eager": ("eagle2", "eager"),
    "vanilla-compiled": ("vanilla", "compile"),  # some time in the compiler
}
LEAST_S = 8.0  # of the budget left for a contender to begin
GENEROUS = 1.6  # times its fair part of what is left that a contender may take


def parse_args(argv=None):
    """Flags; see the module's text."""
    from model.common.args import between, shape_name

    parser = parts.make_parser(
        __doc__,
        model_path=parts.TARGET,
        dtype="bfloat16",
        device="auto",
        runtime=None,
        questions=24,
        max_new_tokens=256,
        num_threads=None,
        output="bench_gpu.json",
    )
    add = parser.add_argument
    add("--scale-to", type=shape_name, default="7b", help="the twin's shape")
    add("--contenders", default=",".join(CONTENDERS), help="some of these, in this order")
    add("--budget-s", type=between(1, 1e6), default=520.0, help="seconds from start to table")
    args = parser.parse_args(argv)
    args.contenders = args.contenders.split(",")
    for name in args.contenders:
        if name not in CONTENDERS:
            parser.error(f"--contenders: no {name}; there are {', '.join(CONTENDERS)}")
    if CONTENDERS[args.contenders[0]][0] != "vanilla":
        parser.error("--contenders: the first has to be a vanilla, whose ids are the reference")
    return args


class Lab:
    """The loaded target in its runtimes, the questions, and the rows of the table so far."""

    def __init__(self, args):
        import torch
        import transformers

        from model.common.target.loading import load_target
        from model.common.target.model import Target

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(args.num_threads or torch.get_num_threads())
        self.args, self.rows = args, []
        prompter, self.prompts = parts.read_bench(args.model_path, args.questions)
        where, twin = (args.model_path, args.dtype, args.device), args.scale_to
        eager = load_target(*where, "eager", scale_to=twin)
        self.device, self.stop = eager.device, prompter.stop_rules(eager.model.generation_config)
        self.on_gpu = self.device.type == "cuda"
        self.runtime = args.runtime or ("cudagraph" if self.on_gpu else "eager")
        self.targets = {"eager": eager}
        if self.runtime == "cudagraph":  # the same weights, with another cache
            self.targets["cudagraph"] = Target(eager.model, "cudagraph", eager.twin)
        if self.runtime == "compile" or self.on_gpu:  # it wraps the layers of a model of its own
            self.targets["compile"] = load_target(*where, "compile", scale_to=twin)
        self.facts = self._facts(torch, transformers)

    def _facts(self, torch, transformers) -> dict:
        """The machine, its bandwidth and what a step has to read."""
        from model.common.records.bandwidth import bandwidth, step_reads

        reads = step_reads(self.targets["eager"])
        num_bytes = sum(reads.get("weight_bytes", {}).values())
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"
        facts = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}
        facts |= {"transformers": transformers.__version__, "python": sys.version.split()[0]}
        facts["parameters"] = sum(p.numel() for p in self.targets["eager"].model.parameters())
        facts |= {"step_reads": reads, "bandwidth": bandwidth(self.device, num_bytes)}
        return {**facts, "load_s": round(elapsed(), 1)}

    def bound_s(self, context: float) -> float | None:
        """Seconds that reading a step's bytes takes, with `context` tokens in the cache."""
        reads, bandwidth = self.facts["step_reads"], self.facts["bandwidth"]
        if bandwidth is None or "no_bound" in reads:
            return None
        num_bytes = sum(reads["weight_bytes"].values()) + reads["embedding_row_bytes"]
        num_bytes += sum(kind["bytes_per_token"] * context for kind in reads["kv"])
        rate = max(bandwidth["read"], bandwidth.get("read_weights", 0))
        return num_bytes / (rate * 1e9)

    def write(self) -> None:
        """Everything so far, whole or not at all."""
        document = {"tool": "bench_gpu", "arguments": vars(self.args), "facts": self.facts}
        document |= {"runtime": self.runtime, "rows": self.rows, "elapsed_s": round(elapsed(), 1)}
        beside = Path(f"{self.args.output}.new")
        beside.write_text(json.dumps(document), encoding="utf-8")
        os.replace(beside, self.args.output)

    def run_all(self) -> None:
        """Every contender within its part of the budget."""
        names = self.args.contenders
        for number, name in enumerate(names):
            left = self.args.budget_s - elapsed()
            row = {"name": name, "runtime": CONTENDERS[name][1] or self.runtime}
            if left < LEAST_S and number:
                row |= {"status": "not run", "reason": f"{max(left, 0):.0f} s of the budget left"}
            elif CONTENDERS[name][1] == self.runtime:
                row |= {"status": "not run", "reason": f"--runtime is {self.runtime} for all"}
            elif row["runtime"] not in (*self.targets, "generate"):
                row |= {"status": "not run", "reason": "no GPU"}
            else:
                share = left / (len(names) - number)
                row |= self.run(name, row["runtime"], elapsed() + min(GENEROUS * share, left))
            self.rows.append(row)
            self.write()
            print(line_of(self, row), flush=True)

    def run(self, name: str, runtime: str, deadline: float) -> dict:
        """One contender: built, warmed up, timed; what fails is recorded and the rest goes on."""
        import torch

        begin, drafter, limit = elapsed(), None, self.args.max_new_tokens
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            target = self.targets["eager" if runtime == "generate" else runtime]
            drafter = self.build(CONTENDERS[name][0], target, runtime)
            decode = self.decoder(target, drafter, runtime)
            parts.warm_up(target, drafter, self.stop, self.prompts, limit)
            decode(self.prompts[0], min(24, limit))
            setup_s = elapsed() - begin
            turns = []
            for ids in self.prompts:
                if turns and elapsed() > deadline:
                    break
                turns.append(decode(ids, limit))
            row = {"status": "ok", "setup_s": round(setup_s, 1), **self.measured(turns, drafter)}
            if getattr(target.step, "broken", False):
                row["note"] = "a capture failed: steps ran eager"
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            row = {"status": "failed", "reason": reason}
        finally:
            drafter = decode = None  # its models are freed before the next one's are built
            gc.collect()
        if self.on_gpu:
            row["peak_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
            row["reserved_gib"] = round(torch.cuda.max_memory_reserved(self.device) / 2**30, 2)
            torch.cuda.empty_cache()
        return row

    def build(self, method: str, target, runtime: str):
        """The method's drafter, as its command builds it."""
        args = self.args
        argv = ["--model-path", args.model_path, "--scale-to", args.scale_to, "--dtype", args.dtype]
        argv += ["--device", self.device]
        argv += ["--runtime", runtime if runtime in self.targets else "eager"]
        return parts.build_script(method, argv, target)

    def decoder(self, target, drafter, runtime: str):
        """A function (prompt ids, limit) -> Turn."""
        from model.common.loop.sampling import Sampler
        from model.common.loop.source import Prompts, Request
        from model.common.target.attention import NAME
        from model.vanilla import hf_engine

        def generate(ids, limit):
            source = Prompts([Request(ids, limit)])
            hf_engine.run(target, source, Sampler(), self.stop)
            target.model.set_attn_implementation(NAME)  # run() has changed it
            return source.turns[0]

        if runtime == "generate":
            return generate
        return lambda ids, limit: parts.answer(target, drafter, self.stop, ids, limit)

    def measured(self, turns, drafter) -> dict:
        """The figures of a contender's answers."""
        from model.common.contract.sequence import EmptyDrafter

        tokens, wall = sum(len(turn.output_ids) for turn in turns), sum(t.wall_s for t in turns)
        steps = sum(len(turn.accept_lengths) for turn in turns)
        row = {
            "questions": len(turns),
            "cut": len(turns) < len(self.prompts),
            "tokens": tokens,
            "steps": steps,
            "tokens_per_s": tokens / wall,
            "prefill_ms": 1e3 * statistics.fmean(turn.prefill_s for turn in turns),
            "captured_while_timed": sum(turn.recompiled for turn in turns),
            "turns": [[len(t.output_ids), t.wall_s, t.prefill_s] for t in turns],
            "output_ids": [turn.output_ids for turn in turns],
        }
        if steps:
            row |= self.per_step(turns, steps, isinstance(drafter, EmptyDrafter))
        return row | self.compared(row["output_ids"])

    def per_step(self, turns, steps: int, drafts_nothing: bool) -> dict:
        """Milliseconds of a step by phase, and the shares that are made of them."""
        step = 1e3 * sum(turn.wall_s - turn.prefill_s for turn in turns) / steps
        row = {"step_ms": step, "accepted": sum(sum(t.accept_lengths) for t in turns) / steps}
        bound = self.bound_s(self._mean_context(turns, steps))
        row["bound_ms"] = bound and 1e3 * bound
        phases = turns[0].phase_s
        for phase in phases:
            row[f"{phase}_ms"] = 1e3 * sum(sum(turn.phase_s[phase]) for turn in turns) / steps
        if phases:
            row["rest_ms"] = step - sum(row[f"{phase}_ms"] for phase in phases)
            outside = row["commit_ms"] + row["rest_ms"]
            if drafts_nothing:
                outside += row["draft_ms"]
            row["outside"] = outside / step
        if bound:
            row["bound_share"] = 1e3 * bound / row.get("verify_ms", step)
        return row

    def _mean_context(self, turns, steps: int) -> float:
        """Committed tokens at a step, on average over all steps."""
        total = 0
        for prompt, turn in zip(self.prompts, turns):
            length = len(prompt) + 1
            for accepted in turn.accept_lengths:
                total += length
                length += accepted
        return total / steps

    def compared(self, answers: list[list[int]]) -> dict:
        """Answers equal to the first vanilla's, and every first difference with its gap."""
        reference = next((r["output_ids"] for r in self.rows if r["status"] == "ok"), answers)
        differences = []
        for number, (own, other) in enumerate(zip(answers, reference)):
            if own != other:
                differences.append(self.difference(number, own, other))
        num = min(len(answers), len(reference))
        return {"ids_compared": num, "ids_same": num - len(differences), "differences": differences}

    def difference(self, number: int, own: list[int], other: list[int]) -> dict:
        """Where two answers part, and by how much the target prefers the second's token there.

        The gap is the target's own, with the common text read in one go; within the rounding of
        the dtype either token is right.
        """
        from evaluation.sampling.forcing import logit_blocks

        pairs = enumerate(zip(own, other))
        place = next((i for i, (a, b) in pairs if a != b), min(len(own), len(other)))
        found = {"question": number, "token": place, "gap": None}
        if place < min(len(own), len(other)):
            read = other[: place + 1]
            for rows in logit_blocks(self.targets["eager"], self.prompts[number], read):
                last = rows[-1].float()
            gap = float(last[other[place]] - last[own[place]])
            found |= {"gap": gap, "ulps": gap / self.ulp(float(last.max()))}
        return found

    def ulp(self, logit: float) -> float:
        """Distance of neighbouring numbers of the target's dtype at a logit."""
        import torch

        return torch.finfo(self.targets["eager"].dtype).eps * 2.0 ** (math.frexp(logit)[1] - 1)


def elapsed() -> float:
    """Seconds since the process began to run this file."""
    return time.perf_counter() - BEGIN


COLUMNS = {  # heading: (key, format, factor)
    "tokens/s": ("tokens_per_s", ".1f", 1),
    "step ms": ("step_ms", ".2f", 1),
    "bound %": ("bound_share", ".1f", 100),
    "accepted": ("accepted", ".2f", 1),
    "draft": ("draft_ms", ".2f", 1),
    "verify": ("verify_ms", ".2f", 1),
    "commit": ("commit_ms", ".2f", 1),
    "rest": ("rest_ms", ".2f", 1),
    "outside %": ("outside", ".1f", 100),
    "speedup": ("speedup", ".2f", 1),
    "peak GiB": ("peak_gib", ".1f", 1),
}
HEADER = f"{'contender':18}{'runtime':>10}{parts.header(COLUMNS)}{'ids':>8}"


def line_of(lab: Lab, row: dict) -> str:
    """A contender's line of the table."""
    line = f"{row['name']:18}{row['runtime']:>10}"
    if row["status"] != "ok":
        return f"{line}  {row['status']}: {row['reason']}"
    row["speedup"] = speedup(lab.rows, row)
    line += parts.cells(row, COLUMNS) + f"{row['ids_same']}/{row['ids_compared']}".rjust(8)
    line += f"  cut after {row['questions']}" * row["cut"]
    captured = row["captured_while_timed"]
    line += f"  {captured} graphs made while timed" * bool(captured)
    return line + (f"  {row['note']}" if "note" in row else "")


def speedup(rows, row: dict) -> float | None:
    """Total tokens/s over the fastest vanilla's, on the questions that both answered."""
    vanilla = [r for r in rows if r["status"] == "ok" and CONTENDERS[r["name"]][0] == "vanilla"]
    if not vanilla:
        return None
    best = max(vanilla, key=lambda r: r["tokens_per_s"])
    common = min(row["questions"], best["questions"])
    rates = []
    for each in (row, best):
        tokens, wall, _ = zip(*each["turns"][:common])
        rates.append(sum(tokens) / sum(wall))
    return rates[0] / rates[1]


def report(lab: Lab) -> int:
    """Print the table and what it rests on; the exit status."""
    facts, args = lab.facts, lab.args
    bandwidth = facts["bandwidth"] or {}
    print(
        f"\n{args.model_path} at {args.scale_to}, {facts['parameters'] / 1e9:.2f} B parameters, "
        f"{args.dtype}, {facts['device']}, torch {facts['torch']}, "
        f"transformers {facts['transformers']}; {args.questions} questions, "
        f"{args.max_new_tokens} tokens; read bandwidth {bandwidth.get('read')} GB/s\n{HEADER}"
    )
    for row in lab.rows:
        print(line_of(lab, row))
    for row in lab.rows:
        if row["status"] == "ok" and row["differences"]:
            known = [d for d in row["differences"] if d["gap"] is not None]
            text = f"{row['name']}: {len(row['differences'])} answers differ"
            if known:
                worst = max(known, key=lambda d: abs(d["ulps"]))
                text += f", largest gap {abs(worst['gap']):.4g}, {abs(worst['ulps']):.3g} ulps"
            print(text)
    lab.write()
    print(f"{elapsed():.0f} s; written to {args.output}")
    failed = any(row["status"] == "failed" for row in lab.rows)
    differ = args.dtype == "float32" and any(row.get("differences") for row in lab.rows)
    return 1 if failed or differ else 0


def main(argv=None) -> None:
    """Run what fits into the budget; exit 1 where something failed or float32 ids differ."""
    args = parse_args(argv)
    from model.common.errors import BadInput, ends_in_one_line

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line("bench_gpu.py"):
        if not Path(args.output).absolute().parent.is_dir():
            raise BadInput(f"--output {args.output}: no such folder")
        lab = Lab(args)
        print(HEADER, flush=True)
        lab.run_all()
    sys.exit(report(lab))


if __name__ == "__main__":
    main()
