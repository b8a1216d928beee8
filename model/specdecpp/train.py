"""Train the acceptance head on a frozen draft model, from the examples that prepare.py makes.

Source: Huang, Guo, Wang, arXiv 2405.19715, section 3.2; 3 epochs, refusals weighted 6 times
Run:    python -m model.specdecpp.train --model-path meta-llama/Llama-2-7b-chat-hf
        --data alpaca.jsonl --output acceptance-head
--model-path is the draft model, whose hidden states the head reads; --template and --template-args
are not used.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from model.common.args import at_least, between
from model.common.errors import BadInput
from model.common.training.trainer import HeadTraining, main

RECIPE = {
    "dtype": "float32",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 4096,
    "accumulate": 8,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "warmup": 0.03,
    "schedule": "cosine",
}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--num-layers", type=at_least(0), default=3, help="residual blocks before the output")
    add("--untied", action="store_true", help="blocks of their own; else one block, used again")
    add("--mismatch-weight", type=between(1e-3, 1e3), default=6.0, help="of refusals in the loss")
    add(
        "--mixing-ratio",
        type=between(0, 1),
        default=0.15,
        help="share of positions that read the target's token and have no label",
    )
    add("--epochs", type=at_least(1), default=3, help="passes over the data without --num-tokens")


class LabelledRow(NamedTuple):
    """A conversations.Row with labels [t] float32: how likely the token here is accepted."""

    ids: object
    mask: object
    labels: object


def mixed_row(example, ratio: float, seed, max_length: int) -> LabelledRow:
    """The prompt, then at each place the draft's token, or with chance `ratio` the target's.

    The mask marks the draft's tokens; it is drawn once, from the seed.
    prefix [5], tokens [1, 2, 3], draft [7, 8, 9], the middle one the target's: ids [5, 7, 2, 9],
    mask [0, 1, 0, 1].
    """
    import torch

    draws = random.Random(seed)
    own = [draws.random() >= ratio for _ in example.tokens]
    both = zip(own, example.draft, example.tokens)
    ids = example.prefix + [guess if keep else token for keep, guess, token in both]
    start = len(example.prefix)
    return LabelledRow(
        torch.tensor(ids[:max_length], dtype=torch.int32),
        torch.tensor(([False] * start + own)[:max_length]),
        torch.tensor(([0.0] * start + example.p_acc)[:max_length]),
    )


def load(args, prompter, ends):
    """conversations.TrainingData of --data's examples; sets --num-tokens where it is not given."""
    from model.common.prompts.templates import Rejected, TrainingData
    from model.specdecpp.examples import read_examples

    rejected, rows = Rejected(), []
    for number, example in enumerate(read_examples(args.data, rejected)):
        row = mixed_row(example, args.mixing_ratio, f"{args.seed} {number}", args.max_length)
        if len(example.prefix) >= args.max_length:
            rejected.add(example.place, f"no answer within {args.max_length} tokens")
        else:
            rows.append(row)
    rejected.close(args.data, len(rows))
    if not any(row.mask.any() for row in rows):
        raise BadInput(f"--mixing-ratio {args.mixing_ratio:g}: no position is left to learn from")
    data = TrainingData(rows, args.seed, args.batch_tokens, args.held_out)
    args.num_tokens = args.num_tokens or args.epochs * data.num_tokens
    return data


def weighted_loss(logits, labels, weight: float):
    """Binary cross-entropy with soft labels, refusals counting `weight` times; 0 without labels.

    logits [N, 2] (refused, accepted), labels [N]: sum of w(1-a)(-log(1-p)) + a(-log p), divided by
    w sum(1-a) + sum(a).
    """
    refused, accepted = (-logits.float().log_softmax(-1)).unbind(-1)
    total = (weight * (1 - labels) * refused + labels * accepted).sum()
    return total / (weight * (1 - labels) + labels).sum().clamp(min=1e-9)


def divergence(logits, labels):
    """Mean KL divergence of p = softmax(logits [N, 2])[1] from labels [N], in nats; 0 for N = 0."""
    import torch

    refused, accepted = (-logits.float().log_softmax(-1)).unbind(-1)
    cross = (1 - labels) * refused + labels * accepted
    own = torch.special.entr(labels) + torch.special.entr(1 - labels)
    return (cross - own).sum() / max(len(labels), 1)


class AcceptanceTraining(HeadTraining):
    """The state that has read a drafted token learns how likely that token is accepted."""

    needs = ("last",)

    def __init__(self, args, target, data):
        from model.specdecpp.heads import AcceptanceHead

        self.args = args
        rows = [row for batch in data.train + data.held_out for row in batch]
        highest = max(int(row.ids.max()) for row in rows)
        if highest >= target.vocab_size:
            raise BadInput(
                f"{args.data}: id {highest}, but {args.model_path} has {target.vocab_size} ids"
            )
        hidden_size = target.config.hidden_size
        self.module = AcceptanceHead(hidden_size, args.num_layers, not args.untied)

    def loss(self, batch):
        """The weighted loss; KL divergence of the head and of a constant that knows the mean."""
        import torch

        rows = [row.labels for row in batch.rows]
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(batch.ids.device)
        labels = labels[batch.mask]
        logits = self.module(batch.hidden["last"][batch.mask])
        loss = weighted_loss(logits, labels, self.args.mismatch_weight)
        mean = labels.mean() if len(labels) else labels.new_zeros(())
        constant = torch.stack([1 - mean, mean]).clamp(min=1e-9).log().expand(len(labels), 2)
        numbers = {
            "kl": divergence(logits.detach(), labels),
            "kl_constant": divergence(constant, labels),
            "accepted": mean,
        }
        return loss, numbers

    def save(self, folder):
        """Write config.json and model.safetensors, names as published; tied blocks stand once."""
        from model.common.heads.checkpoint import save_checkpoint
        from model.specdecpp.heads import HEAD_FILES, state_to_save

        head = self.module
        config = {"hidden_size": head.hidden_size, "num_layers": head.num_layers}
        save_checkpoint(folder, config, HEAD_FILES[0], state_to_save(head))


if __name__ == "__main__":
    main("train_specdecpp", __doc__, add_args, AcceptanceTraining, RECIPE, load=load)
