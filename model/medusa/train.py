"""Train Medusa heads on a frozen target (Medusa-1).

Source: Cai et al., arXiv 2401.10774, section 2.2.1; recipe of FasterDecoding/medusa-vicuna-7b-v1.3:
        all heads' cross-entropies count alike, one epoch of ShareGPT
Run:    python -m model.medusa.train --model-path lmsys/vicuna-7b-v1.3 --template vicuna_v1.1
        --data ShareGPT_V4.3_unfiltered_cleaned_split.json --output medusa-vicuna-7b
"""

from __future__ import annotations

from functools import partial

from model.common.args import at_least, between
from model.common.training.trainer import HeadTraining, main

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 16384,
    "accumulate": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup": 0.1,
    "schedule": "cosine",
}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--num-heads", type=at_least(1), default=5, help="heads to train")
    add("--num-layers", type=at_least(1), default=1, help="residual blocks of a head")
    add(
        "--head-decay",
        type=between(0, 1),
        default=1.0,
        help="weight of head k's loss is this to the power k, k from 0 (the paper's: 0.8)",
    )


def scored(head, states, labels):
    """Sums over rows of states [N, H]: the cross-entropy of labels [N], how often they are best."""
    from torch.nn.functional import cross_entropy

    logits = head(states).float()
    right = (logits.argmax(-1) == labels).sum()
    return cross_entropy(logits, labels, reduction="sum"), right


class MedusaTraining(HeadTraining):
    """Head k (from 0) at position t learns the token at t + 2 + k, where it is an answer's."""

    needs = ("last",)

    def __init__(self, args, target, data):
        from model.common.target.logits import logit_factor
        from model.medusa.heads import MedusaHeads

        self.args = args
        vocab_size, hidden_size = target.lm_head.weight.shape
        self.module = MedusaHeads(args.num_heads, hidden_size, vocab_size, args.num_layers)
        self.module.init_from(target.lm_head, logit_factor(target.config))

    def loss(self, batch):
        """Weighted sum of the heads' mean cross-entropies; loss and top-1 accuracy of each."""
        from model.common.training.step import summed

        total, metrics = 0.0, {}
        for k, head in enumerate(self.module.children()):
            chosen = batch.labelled(2 + k)
            labels = batch.ids.roll(-2 - k, 1)[chosen]
            loss, right = summed(partial(scored, head), batch.hidden["last"][chosen], labels)
            loss, right = (value / max(len(labels), 1) for value in (loss, right))
            total = total + self.args.head_decay**k * loss
            metrics |= {f"loss_{k + 1}": loss.detach(), f"accuracy_{k + 1}": right}
        return total, metrics

    def save(self, folder):
        """Write config.json and medusa_lm_head.safetensors, names as published."""
        from model.common.heads.checkpoint import save_checkpoint
        from model.medusa.heads import HEAD_FILES

        config = {
            "base_model_name_or_path": self.args.model_path,
            "medusa_num_heads": self.args.num_heads,
            "medusa_num_layers": self.args.num_layers,
        }
        save_checkpoint(folder, config, HEAD_FILES[0], self.module.state_dict())


if __name__ == "__main__":
    main("train_medusa", __doc__, add_args, MedusaTraining, RECIPE)
