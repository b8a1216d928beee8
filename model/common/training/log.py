"""What a training run says: running means, progress lines, log.jsonl and the head's card."""

from __future__ import annotations

import json
import os
from pathlib import Path

from model.common.errors import parse_json

LOG = "log.jsonl"


class Mean:
    """Means of {name: scalar} weighted by tokens; its state is plain numbers.

    A name's mean is over the batches that have it.
    """

    def __init__(self, state: dict | None = None):
        state = state or {"sums": {}, "counts": {}, "weight": 0}
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        self.weight = state["weight"]

    def add(self, values: dict, weight: int) -> None:
        """values: tensors or numbers of one batch."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * weight
            self.counts[name] = self.counts.get(name, 0) + weight
        self.weight += weight

    def state(self) -> dict:
        """For a checkpoint."""
        return {"sums": self.sums, "counts": self.counts, "weight": self.weight}

    def take(self) -> dict:
        """The means, and begin anew."""
        means = {name: value / max(self.counts[name], 1) for name, value in self.sums.items()}
        self.sums, self.counts, self.weight = {}, {}, 0
        return means


class Log:
    """Progress lines, printed and appended to log.jsonl; silent outside the main process.

    Lines after step `num_steps` are cut off: a run that was killed writes them again.
    """

    def __init__(self, folder: Path, num_steps: int, is_main: bool):
        self.path, self.is_main = folder / LOG, is_main
        if is_main and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if _step(line) <= num_steps]
            part = self.path.with_suffix(".part")
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(part, self.path)

    def write(self, values: dict) -> None:
        """One line."""
        if not self.is_main:
            return
        words = []
        for name, value in values.items():
            shown = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
            words.append(f"{name} {shown}")
        print("  ".join(words), flush=True)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(values) + "\n")


def _step(line: str) -> float:
    """The step of a log line; infinite where it was not written whole."""
    try:
        return parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def card(title: str, args, facts: dict, command: str, folder: Path) -> str:
    """The text of a head's README.md.

    facts: steps, tokens, seconds, loss, metrics, held_out, half, device, data_sha256,
    conversations.
    """
    import torch
    import transformers

    files = [f for f in folder.iterdir() if f.suffix in (".pt", ".bin", ".safetensors")]
    sizes = {f.name: f.stat().st_size for f in sorted(files) if f.name != "checkpoint.pt"}
    train = {"loss": facts["loss"], **facts["metrics"]}
    num_train, num_held = facts["conversations"]
    rows = {
        "target": f"{args.model_path}, read in {args.dtype}",
        "data": f"{Path(args.data).name}, sha256 {facts['data_sha256']}",
        "conversations": f"{num_train:,}, and {num_held:,} held out",
        "training tokens": f"{facts['tokens']:,} (prompts included, padding not)",
        "steps": f"{facts['steps']:,}",
        "duration": f"{facts['seconds']:.0f} s on {facts['device']}",
        "CPU threads": torch.get_num_threads(),
        "final training": _numbers(train),
        f"final held-out (weights in {facts['half']})": _numbers(facts["held_out"]),
        "seed": args.seed,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "weights": ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()),
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    return f"# {title}\n\n    {command}\n\n| | |\n|---|---|\n{table}"


def _numbers(values: dict) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items()) or "none"
