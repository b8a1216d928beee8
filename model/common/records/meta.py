"""What a run is made of, for its meta file: settings that must agree, and the machine."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

from model.common.args import ROOT
from model.common.argument_types import shares_of
from model.common.draft_flags import wanted_tree
from model.common.load.flags import FLAGS as LOAD
from model.common.records import writer as record

# which questions are asked: two runs that differ in these alone can be one file
SELECTION = ("question_begin", "question_end", "question_ids", "categories", "limit_per_category")
OWN_SHARED = (
    "bench_name",
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
    "scale_to",
)
# recorded as None where they change nothing, as in files older than the flags
NEUTRAL = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "system_prompt": None,
    "template_args": None,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "trust_remote_code": False,
}
NOT_METHOD = (
    "model_path",
    "model_id",
    "device",
    "num_threads",
    "turned_rows",
    "num_gpus_total",
    "num_gpus_per_model",
    "gpu_strategy",
    "question_file",
)
NOT_METHOD += ("template", "history", "answer_file", "overwrite", "num_runs", "paired", *LOAD)
NOT_METHOD += ("energy", "energy_interval")
ON_NO_HUB = ("datastore_path", "static_path", "token_counts_path")


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
    shared |= {name: None if values[name] == n else values[name] for name, n in NEUTRAL.items()}
    shared |= _spread(args)
    shared |= {
        "target": Path(args.model_path.rstrip("/")).name,
        "weights_sha256": record.sha256_weights(folder),
        "config_sha256": record.sha256_config(folder),
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
        "method_args": _method_args(values, {*OWN_SHARED, *NEUTRAL, *NOT_METHOD, *SELECTION}),
        "selection": {name: values[name] for name in SELECTION},
        "arguments": {k: v for k, v in sorted(values.items())},
        "environment": _environment(device),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _spread(args) -> dict:
    """Over how many devices the target is spread, and by whose map."""
    num, _ = shares_of(args.gpu_strategy, args.num_gpus_per_model)
    automatic = args.gpu_strategy in (None, "auto")
    return {
        "num_gpus_per_model": num,
        "gpu_map": None if num == 1 else "accelerate's" if automatic else "by bytes",
    }


def question_totals(asked: dict[str, str]) -> dict[str, str]:
    """The shared hashes of a meta's `questions`: of all that was asked, of all first prompts."""
    parts = [(name, *digits.split(" ")) for name, digits in asked.items()]
    return {
        "questions_sha256": record.sha256_text("".join(f"{name} {q}\n" for name, q, _ in parts)),
        "prompts_sha256": record.sha256_text("".join(f"{name} {p}\n" for name, _, p in parts)),
    }


def _method_args(values: dict, common: set) -> dict:
    """The method's own flags; what names a file or a model is followed by its hashes."""
    own = {}
    if values["gpu_strategy"]:  # a name that files older than the flag do not have
        own["gpu_strategy"] = values["gpu_strategy"]
    for name, value in sorted(values.items()):
        if name not in common:
            own[name] = value
            if isinstance(value, str):
                own |= _hashes(name, value)
    return own


def _hashes(name: str, value: str) -> dict:
    """Of what a method's flag names: a tree's file; weights or an index, and their config."""
    from model.common.target.loading import check_model_path, model_folder

    if name == "tree":
        path = Path(wanted_tree(value, "")[0])  # where it is no file, the name of one of ours
        return {"tree_sha256": record.sha256_file(path)} if path.is_file() else {}
    if not name.endswith("_path"):
        return {}
    path = Path(value)
    if not path.exists():
        if name in ON_NO_HUB:  # its reader says that it is missing
            return {}
        check_model_path(value)
        path = model_folder(value)
    found = {f"{name}_sha256": record.sha256_weights(path)}
    config = path / "config.json"
    if config.is_file():
        found[f"{name}_config_sha256"] = record.sha256_file(config)
    return found


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
