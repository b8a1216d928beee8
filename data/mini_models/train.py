"""Train the mini models from a seed; nothing is downloaded.

Run:    python data/mini_models/train.py target
        python data/mini_models/train.py sps
A run that was interrupted goes on from its last checkpoint in data/mini_models/.work.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from data.mini_models.presets import CARD, PRESETS, build_model  # noqa: E402

WORK = HERE / ".work"


def publish(folder, target):
    """Move a folder's files into another, each in one rename: readers never see half a file."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        os.replace(file, target / file.name)
    shutil.rmtree(folder)


def load_tokenizer(rebuild=False):
    """The shared tokenizer; trained first where it is missing."""
    from transformers import AutoTokenizer

    folder = WORK / "tokenizer"
    if rebuild or not (folder / "tokenizer.json").exists():
        from data.mini_models.build_tokenizer import build_tokenizer

        build_tokenizer().save_pretrained(WORK / "tokenizer.new")
        publish(WORK / "tokenizer.new", folder)
    return AutoTokenizer.from_pretrained(folder)


def batch_loss(model, rows, pad_id, device):
    """Weighted sum of token losses of a group of rows, and the sum of its weights."""
    from torch.nn.functional import cross_entropy

    from data.mini_models.batches import collate

    input_ids, weights = (tensor.to(device) for tensor in collate(rows, pad_id))
    logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]  # [B, T-1, V]
    losses = cross_entropy(
        logits.flatten(0, 1).float(), input_ids[:, 1:].flatten(), reduction="none"
    )
    return (losses * weights[:, 1:].flatten()).sum(), weights[:, 1:].sum()


def held_out_loss(model, groups, pad_id, device):
    """Mean loss over the answers' tokens of the held-out questions."""
    import torch

    model.eval()
    with torch.no_grad():
        parts = [batch_loss(model, group, pad_id, device) for group in groups]
    model.train()
    return float(sum(p[0] for p in parts) / sum(p[1] for p in parts))


def learning_rate(progress, peak, warmup=0.03):
    """Linear warm-up, then linear decay to zero; progress is the share of tokens done."""
    return peak * min(progress / warmup + 0.01, max(0.0, (1 - progress) / (1 - warmup)))


class Trainer:
    """One training run: its model, optimizer, data and counts."""

    def __init__(self, args, number):
        """Build a phase from the seed, and go on from its checkpoint where there is one."""
        import torch
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        from data.mini_models.batches import training_steps, validation_groups

        self.args, self.number = args, number
        self.phase = PRESETS[args.name].phases[number]
        set_seed(args.seed + number)
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        self.device = self.accelerator.device
        self.tokenizer = load_tokenizer()
        model = build_model(args.name, self.tokenizer)
        if number:
            model = type(model).from_pretrained(folder_of(args.name, number - 1), dtype="float32")
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.phase.learning_rate, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.steps = training_steps(
            self.tokenizer,
            args.seed + number,
            args.prompt_weight,
            args.micro_tokens,
            args.micro_per_step,
            self.phase.shares,
        )
        self.held_out = validation_groups(self.tokenizer, args.micro_tokens)
        self.done = {"steps": 0, "tokens": 0, "seconds": 0.0, "loss": 0.0}
        self.checkpoint = WORK / args.name / f"checkpoint{number}.pt"
        if self.checkpoint.exists() and not args.fresh:
            self.resume()

    def settings(self):
        """What must be equal for a checkpoint to be continued."""
        keys = ["name", "seed", "prompt_weight", "micro_tokens", "micro_per_step"]
        phase = {"phase": self.number, **vars(self.phase)}
        return {key: getattr(self.args, key) for key in keys} | phase

    def save(self):
        """Write a checkpoint in one rename."""
        import torch

        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self.settings(),
            "done": self.done,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, self.checkpoint.with_suffix(".new"))
        os.replace(self.checkpoint.with_suffix(".new"), self.checkpoint)

    def resume(self):
        """Load the checkpoint and skip the data that it has seen."""
        import torch

        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["settings"] != self.settings():
            sys.exit(f"{self.checkpoint}: of other settings; add --fresh to start anew")
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]
        for _ in range(self.done["steps"]):
            next(self.steps)
        print(f"goes on after step {self.done['steps']}", flush=True)

    def step(self):
        """One optimizer step over several groups."""
        pad_id, groups = self.tokenizer.pad_token_id, next(self.steps)
        progress = self.done["tokens"] / self.phase.num_tokens
        rate = learning_rate(progress, self.phase.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = sum(sum(weights[1:]) for rows in groups for _, weights in rows)
        loss = 0.0
        for rows in groups:
            with self.accelerator.autocast():
                part, _ = batch_loss(self.model, rows, pad_id, self.device)
            self.accelerator.backward(part / total)
            loss += part.item() / total
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done["steps"] += 1
        self.done["tokens"] += sum(len(ids) for rows in groups for ids, _ in rows)
        decay = min(0.98, 1 - 1 / self.done["steps"])
        self.done["loss"] = decay * self.done["loss"] + (1 - decay) * loss

    def run(self):
        """Train until the budget is used up."""
        before, last = self.done["seconds"], time.perf_counter()
        start = saved = last
        while self.done["tokens"] < self.phase.num_tokens:
            self.step()
            now = time.perf_counter()
            self.done["seconds"] = before + now - start
            if self.done["steps"] % self.args.log_every == 0:
                self.report()
            if now - saved > self.args.save_every_s:
                self.save()
                saved = now

    def report(self):
        """Print a progress line."""
        done = self.done
        share = done["tokens"] / self.phase.num_tokens
        loss = held_out_loss(self.model, self.held_out, self.tokenizer.pad_token_id, self.device)
        print(
            f"step {done['steps']} tokens {done['tokens']:,} ({share:.0%}) "
            f"loss {done['loss']:.4f} held-out {loss:.4f} {done['seconds']:.0f} s "
            f"{done['tokens'] / done['seconds']:.0f} tokens/s",
            flush=True,
        )

    def finish(self):
        """Round the weights, keep them with the phase's counts, evaluate."""
        import torch

        model = self.accelerator.unwrap_model(self.model).to(torch.float16)
        folder = folder_of(self.args.name, self.number)
        model.save_pretrained(folder)
        self.done["held_out"] = held_out_loss(
            model.float(), self.held_out, self.tokenizer.pad_token_id, self.device
        )
        (folder / "done.json").write_text(json.dumps(self.done), encoding="utf-8")
        self.checkpoint.unlink(missing_ok=True)
        print(f"phase {self.number}: held-out loss {self.done['held_out']:.4f}", flush=True)


def folder_of(name, number):
    """Where the weights of a finished phase are kept."""
    return WORK / name / f"phase{number}"


def publish_model(args):
    """Put the last phase's weights, the tokenizer and the card into the model's directory."""
    from data.mini_models.build_tokenizer import save_tokenizer

    numbers = range(len(PRESETS[args.name].phases))
    done = [json.loads((folder_of(args.name, n) / "done.json").read_text()) for n in numbers]
    folder = WORK / args.name / "final"
    shutil.copytree(folder_of(args.name, numbers[-1]), folder, dirs_exist_ok=True)
    (folder / "done.json").unlink()
    save_tokenizer(load_tokenizer(), folder)
    (folder / "README.md").write_text(card(args, done, folder), encoding="utf-8")
    publish(folder, HERE / args.name)


def card(args, done, folder):
    """The text of the model's README.md."""
    import torch
    import transformers
    from safetensors import safe_open

    preset = PRESETS[args.name]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]
    return CARD.format(
        name=args.name, what=preset.what, seed=args.seed,
        command=f"python data/mini_models/train.py {args.name}",
        shape=", ".join(f"{key} {value}" for key, value in preset.shape.items()),
        num_parameters=sum(math.prod(shape) for shape in shapes),
        num_tokens=" + ".join(f"{phase['tokens']:,}" for phase in done),
        num_steps=" + ".join(f"{phase['steps']:,}" for phase in done),
        duration_s=" + ".join(f"{phase['seconds']:.0f}" for phase in done),
        train_loss=done[-1]["loss"], held_out_loss=done[-1]["held_out"],
        num_threads=torch.get_num_threads(),
        num_bytes=(folder / "model.safetensors").stat().st_size,
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
    )  # fmt: skip


def parse_args():
    """Read the command line; what is not given comes from the preset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=["tokenizer", *PRESETS], help="what to train")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and corpus")
    parser.add_argument("--prompt-weight", type=float, default=0.1, help="loss weight of prompts")
    parser.add_argument("--micro-tokens", type=int, default=1024, help="tokens of one forward")
    parser.add_argument("--micro-per-step", type=int, default=4, help="forwards of one step")
    parser.add_argument("--mixed-precision", default="no", help="no, bf16 or fp16 (accelerate)")
    parser.add_argument("--log-every", type=int, default=100, help="steps between progress lines")
    parser.add_argument(
        "--save-every-s", type=float, default=180, help="seconds between checkpoints"
    )
    parser.add_argument("--fresh", action="store_true", help="start anew despite earlier phases")
    return parser.parse_args()


def main():
    """Train the tokenizer or a model."""
    args = parse_args()
    if args.name == "tokenizer":
        load_tokenizer(rebuild=True)
        return
    for number in range(len(PRESETS[args.name].phases)):
        if args.fresh or not (folder_of(args.name, number) / "done.json").exists():
            trainer = Trainer(args, number)
            trainer.run()
            trainer.finish()
    publish_model(args)


if __name__ == "__main__":
    main()
