"""What a run is made of, for its meta file: settings that must agree, and the machine."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

from model.common.args import ROOT
from model.common.records import writer as record

OWN_SHARED = (
    "bench_name",
    "question_begin",
    "question_end",
    "question_ids",
    "categories",
    "limit_per_category",
    "num_choices",
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "batch_size",
    "dtype",
    "runtime",
    "warmup",
    "num_gpus_per_model",
    "scale_to",
)
NOT_METHOD = ("model_path", "model_id", "device", "num_threads", "num_gpus_total", "question_file")
NOT_METHOD += ("template", "history", "answer_file", "overwrite", "num_runs", "paired")


def make_meta(method: str, args, hashes: dict, folder: Path, template: str) -> dict:
    """The meta document; see record.py for what is compared and resumed by it.

    hashes: of what was asked; folder: the target's directory; template: its prompts' name.
    """
    import torch
    import transformers

    from model.common.target.loading import torch_device

    device = torch_device(args.device)
    values = vars(args)
    shared = {name: values[name] for name in OWN_SHARED}
    shared |= {
        "target": Path(args.model_path.rstrip("/")).name,
        "weights_sha256": record.sha256_weights(folder),
        "config_sha256": record.sha256_file(folder / "config.json"),
        **hashes,
        "template": template,
        "history_sha256": record.sha256_file(Path(args.history)) if args.history else None,
        "device": device_name(device),
        "num_threads": torch.get_num_threads() if device.type == "cpu" else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "harness_sha256": record.harness_sha256(),
    }
    return {
        "schema": record.SCHEMA,
        "method": method,
        "model_id": args.model_id,
        "acceptance": acceptance_name(args),
        "lossy": is_lossy(args),
        "shared": shared,
        "method_args": _method_args(values, set(OWN_SHARED) | set(NOT_METHOD)),
        "arguments": {k: v for k, v in sorted(values.items())},
        "environment": _environment(device),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _method_args(values: dict, common: set) -> dict:
    """The method's own flags; what names a file or a directory is followed by its hash."""
    own = {}
    for name, value in sorted(values.items()):
        if name not in common:
            own[name] = value
            if isinstance(value, str) and name.endswith("_path") and Path(value).exists():
                own[f"{name}_sha256"] = record.sha256_weights(Path(value))
    return own


def is_lossy(args) -> bool:
    """Whether the method's acceptance rule changes the target's output by design."""
    return getattr(args, "acceptance", "exact") == "typical"


def acceptance_name(args) -> str:
    """How tokens were accepted; lossy rules say so."""
    if is_lossy(args):
        return "typical (lossy)"
    return "greedy" if args.temperature == 0 else "exact sampling"


def device_name(device) -> str:
    """The GPU's or the processor's name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _environment(device) -> dict:
    """Where and with what: recorded, not compared."""
    facts = {
        "host": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _run("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"),
    }
    if device.type == "cuda":
        query = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit"
        facts["gpu"] = _run("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return facts


def _run(*command: str) -> str | None:
    """A command's output, None where it cannot be had."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
