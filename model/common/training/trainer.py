"""The trainer of draft heads: a frozen target, conversations from a file, one loop for all methods.

A method gives a module, a loss of a batch and its published file format (HeadTraining); this part
reads the data, schedules, logs, evaluates and saves. An interrupted run goes on from its checkpoint
with the same losses. Under `accelerate launch` each process draws batches of its own, gradients are
averaged and logs are of the main process's batches.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from pathlib import Path

from model.common.errors import BadInput, Unwritable, ends_in_one_line
from model.common.records.lock import written_alone
from model.common.training import flags as training_args
from model.common.training.log import LOG, Log, Mean, card

CHAIN = 5  # tokens of the chains that held-out accept lengths are of
CHECKPOINT, FEATURES, CARD = "checkpoint.pt", ".features", "README.md"


class HeadTraining:
    """What a method's train.py gives to the trainer.

    needs   hidden states of the target, as in drafter.Needs: "last" (after the final norm, also
            what Batch.logits wants) or i (the input of decoder layer i); and "best", the target's
            likeliest id [B, T] after each token that an answer's token follows, -1 elsewhere
    module  float32 nn.Module on the CPU; what requires no gradient stays as it is
    title   of the card
    """

    needs: tuple = ("last",)
    module, title = None, "Draft head"

    def loss(self, batch) -> tuple:
        """(scalar loss, {metric: scalar}) of a features.Batch; means over its labelled tokens.

        Randomness comes from torch's global generators, which are seeded by (seed, step) before
        every call. In evaluation self.module.training is False.
        """
        raise NotImplementedError

    def drafts(self, batch, depth: int):
        """Greedy chains [B, T, depth] for held-out accept lengths: at row r the head's tokens for
        r + 2, r + 3, ..., each given that those before it are the batch's. None = not known."""
        return None

    def save(self, folder: Path) -> None:
        """Write the published files; the module is in 16 bit then."""
        raise NotImplementedError


class ModelTraining(HeadTraining):
    """A method that trains a whole causal model: in float32, saved as transformers does.

    tokenizer  of --model-path, saved beside it
    """

    needs = ()

    def __init__(self, args):
        from model.common.prompts.prompter import load_tokenizer

        if args.features == "cache":
            raise BadInput("--features cache: all weights are trained, there is nothing to keep")
        self.args, self.tokenizer = args, load_tokenizer(args.model_path)

    def train_all(self, module) -> None:
        """Take the model that is trained; of its generation config only ids stay.

        Some of its other fields cannot be saved, which would be found out after the training.
        """
        from transformers import GenerationConfig

        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        own = {name: getattr(module.generation_config, name, None) for name in names}
        module.generation_config = GenerationConfig(**own)
        self.module = module.train().requires_grad_(True)
        self.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        if self.args.gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})

    def save(self, folder):
        """Write the model and its tokenizer."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for name, buffer in self.buffers.items():  # rounding them with the weights would be wrong
            module, _, own = name.rpartition(".")
            setattr(self.module.get_submodule(module), own, buffer)


def add_checkpointing(parser) -> None:
    """The flag that ModelTraining reads."""
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, a third more time"
    )


def main(prog: str, doc: str, add_args, make_method, defaults: dict, argv=None, load=None) -> None:
    """A method's train.py: train and exit: 0, 2 on bad input, 130 if interrupted.

    add_args(group)                   declares the method's own flags
    make_method(args, target, data)   returns its HeadTraining, of a features.FrozenTarget and a
                                      conversations.TrainingData; torch is seeded
    defaults                          {dest: value} of the shared flags, the published recipe
    load(args, prompter, ends)        reads --data; None = conversations.load_data
    """
    parser = training_args.make_parser(prog, doc, add_args, defaults)
    args = parser.parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ends_in_one_line(prog):
        train(args, make_method, training_args.command_line(prog, argv), load)


def train(args, make_method, command: str = "", load=None) -> dict:
    """Train a head and write it to args.output; returns the final held-out numbers."""
    import torch
    from accelerate import Accelerator

    training_args.check(args)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    if (Path(args.output) / CARD).exists() and not args.fresh:
        raise BadInput(f"{args.output}: holds a trained head; add --fresh to train anew")
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=args.mixed_precision)
    with written_alone(*[Path(args.output)] * accelerator.is_main_process):
        return _train(args, make_method, command, load, accelerator)


def _train(args, make_method, command: str, load, accelerator) -> dict:
    """See train()."""
    import torch

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.templates import load_data
    from model.common.target.loading import load_model
    from model.common.training.features import FrozenTarget

    model = load_model(args.model_path, args.dtype, str(accelerator.device))
    tokenizer = load_tokenizer(args.model_path)
    prompter = Prompter(tokenizer, args.template, variables=args.template_args)
    data = (load or load_data)(args, prompter, prompter.stop_rules(model.generation_config).eos_ids)
    args.num_tokens = args.num_tokens or data.num_tokens
    target = FrozenTarget(model)
    torch.manual_seed(args.seed)
    method = make_method(args, target, data)
    trainer = Trainer(args, method, target, data, accelerator)
    trainer.run()
    means = trainer.finish(command)
    accelerator.wait_for_everyone()  # processes leave together, the group ended
    accelerator.end_training()
    return means


class Trainer:
    """One run: the method's module, its optimizer, the data and counts."""

    def __init__(self, args, method: HeadTraining, target, data, accelerator):
        from model.common.records.writer import sha256_file, sha256_weights
        from model.common.target.loading import model_folder
        from model.common.training.step import LossModule, make_optimizer

        self.args, self.method, self.target, self.data = args, method, target, data
        self.accelerator, self.folder = accelerator, Path(args.output)
        self.data_sha256 = sha256_file(Path(args.data))
        self.settings = training_args.settings(
            args,
            data_sha256=self.data_sha256,
            target_sha256=sha256_weights(model_folder(args.model_path)),
            num_processes=accelerator.num_processes,
        )
        optimizer = make_optimizer(method.module, args)
        self.model, self.optimizer = accelerator.prepare(LossModule(method), optimizer)
        self.done = {"steps": 0, "tokens": 0, "seconds": 0.0, "loss": None}
        self.window = Mean()
        with accelerator.main_process_first():
            self._open()

    def _open(self) -> None:
        """Make the folder, go on from its checkpoint, or clear what an older run left."""
        import torch

        from model.common.training.features import Features

        self.folder.mkdir(parents=True, exist_ok=True)
        if self.args.fresh and self.accelerator.is_main_process:
            for name in (CHECKPOINT, LOG, CARD):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / FEATURES, ignore_errors=True)
        if (self.folder / CHECKPOINT).exists():
            self.resume()
        self.log = Log(self.folder, self.done["steps"], self.accelerator.is_main_process)
        args, folder, settings = self.args, None, self.settings
        if args.features == "cache":
            folder = Path(args.features_folder or self.folder / FEATURES)
        if shared := bool(args.features_folder):
            settings = {"target": settings["target_sha256"], "precision": args.dtype}
        dtype = getattr(torch, args.feature_dtype) if args.feature_dtype else None
        needs = tuple(self.method.needs)
        self.features = Features(self.target, needs, folder, settings, dtype, shared)

    def save(self) -> None:
        """Write the checkpoint in one rename."""
        import torch

        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "settings": self.settings,
            "done": self.done,
            "window": self.window.state(),
            "module": self.method.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
        }
        file, part = self.folder / CHECKPOINT, self.folder / (CHECKPOINT + ".part")
        try:
            torch.save(state, part)
            os.replace(part, file)
        except (OSError, RuntimeError) as error:  # the one before it stays
            part.unlink(missing_ok=True)
            raise Unwritable(file, error) from error

    def resume(self) -> None:
        """Load the checkpoint; one of other settings is refused."""
        import torch

        file = self.folder / CHECKPOINT
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            found = state["settings"]
            names = sorted(found.keys() | self.settings.keys())
            if other := [name for name in names if found.get(name) != self.settings.get(name)]:
                raise BadInput(f"{file}: of another {', '.join(other)}; add --fresh to train anew")
            self.method.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.done, self.window = state["done"], Mean(state["window"])
        except BadInput:
            raise
        except Exception as error:  # a damaged pickle fails in as many ways as it has bytes
            raise BadInput(f"{file}: no checkpoint; add --fresh to train anew") from error
        self.accelerator.print(f"goes on after step {self.done['steps']}", flush=True)

    def run(self) -> None:
        """Train until the budget is used up."""
        rows, held = self.data.num_conversations
        self.accelerator.print(f"{rows} conversations, {held} held out")
        before, start = self.done["seconds"], time.perf_counter()
        saved = start
        while self.done["tokens"] < self.args.num_tokens:
            self.step()
            self.done["seconds"] = before + time.perf_counter() - start
            steps = self.done["steps"]
            if steps % self.args.log_every == 0:
                self.report()
            evaluated = steps % self.args.eval_every == 0 and self.report_held_out()
            if evaluated or time.perf_counter() - saved > self.args.save_every_s:
                self.save()
                saved = time.perf_counter()

    def step(self) -> None:
        """One optimizer step: --accumulate batches per process, weighted alike."""
        from model.common.training.step import rate_share, seed_all

        args, done, accelerator = self.args, self.done, self.accelerator
        world, rank = accelerator.num_processes, accelerator.process_index
        first = done["steps"] * args.accumulate * world
        drawn = [self.data.index(first + i) for i in range(args.accumulate * world)]
        done["tokens"] += sum(self.data.tokens(index) for index in drawn)
        share = rate_share(done["tokens"] / args.num_tokens, args)
        for group in self.optimizer.param_groups:
            group["lr"] = args.learning_rate * share
        mine = drawn[rank::world]
        for i, index in enumerate(mine):
            batch = self.features.batch(self.data.train[index])
            seed_all(args.seed, done["steps"], i, rank)
            last = i == len(mine) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss, metrics = self.model(batch)
                accelerator.backward(loss / len(mine))
            value = float(loss.detach())
            if not math.isfinite(value):  # no weight has changed, no checkpoint has it
                raise BadInput(f"step {done['steps'] + 1}: the loss is {value}")
            self.window.add({"loss": value, **metrics}, int(batch.mask.sum()))
        if args.clip_value:
            accelerator.clip_grad_value_(self.model.parameters(), args.clip_value)
        if args.clip_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), args.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        done["steps"] += 1

    def report(self) -> None:
        """Log the means since the last report."""
        means, done = self.window.take(), self.done
        done["loss"] = means["loss"]
        done["metrics"] = {name: value for name, value in means.items() if name != "loss"}
        rate = self.optimizer.param_groups[0]["lr"]
        speed = round(done["tokens"] / max(done["seconds"], 1e-9))
        self.log.write(
            {"step": done["steps"], "tokens": done["tokens"]}
            | {"epoch": round(done["tokens"] / self.data.num_tokens, 3), "learning_rate": rate}
            | {**means, "tokens_per_s": speed, "seconds": round(done["seconds"], 1)}
        )

    def report_held_out(self, weights: str = "") -> dict:
        """Log the held-out means and return them; {} where nothing is held out."""
        means = self.evaluate()
        if means:
            if not math.isfinite(means["loss"]):
                step, loss = self.done["steps"], means["loss"]
                raise BadInput(f"step {step}: the held-out loss{weights} is {loss}")
            counts = {"step": self.done["steps"], "tokens": self.done["tokens"]}
            self.log.write(counts | {f"held_out_{name}": mean for name, mean in means.items()})
        return means

    def evaluate(self) -> dict:
        """Means over the held-out conversations, on the main process; {} elsewhere.

        accept_length: tokens a step of greedy decoding of their answers with chains of CHAIN.
        """
        import torch

        from model.common.training.step import seed_all
        from model.common.training.unroll import accepted

        means, module, tokens, steps = Mean(), self.method.module, 0, 0
        held_out = self.data.held_out if self.accelerator.is_main_process else []
        module.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for i, rows in enumerate(held_out):
                seed_all(self.args.seed, "held-out", i)
                batch = self.features.batch(rows)
                loss, metrics = self.method.loss(batch)
                means.add({"loss": loss, **metrics}, int(batch.mask.sum()))
                chains = self.method.drafts(batch, CHAIN)
                if chains is not None:
                    more = accepted(chains, batch.ids, batch.mask)
                    tokens, steps = tokens + more[0], steps + more[1]
        module.train()
        return means.take() | ({"accept_length": tokens / steps} if steps else {})

    def finish(self, command: str) -> dict:
        """Round to 16 bit, save in the published format, evaluate what was saved, write the card.

        Returns the held-out means.
        """
        import torch

        from model.common.records.meta import device_name

        if self.window.weight:
            self.report()
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return {}
        half = self.target.dtype if self.target.dtype.itemsize == 2 else torch.float16
        module = self.method.module.to(half)
        self.method.save(self.folder)
        module.float()
        means = self.report_held_out(f" of weights in {half}")
        facts = {"held_out": means, "half": str(half).removeprefix("torch."), **self.done}
        facts["device"] = device_name(self.accelerator.device)
        facts |= {"data_sha256": self.data_sha256, "conversations": self.data.num_conversations}
        text = card(self.method.title, self.args, facts, command, self.folder)
        part = self.folder / (CARD + ".part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, self.folder / CARD)
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(self.folder / FEATURES, ignore_errors=True)
        return means
