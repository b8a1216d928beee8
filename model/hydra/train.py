"""Train Hydra heads on a frozen target.

Source: Ankner et al., arXiv 2402.05109; the recipe of Hydra++: four heads of four layers behind a
        prefix layer, each with the target's own distribution as its goal
Run:    python -m model.hydra.train --model-path lmsys/vicuna-7b-v1.3 --template vicuna_v1.1
        --data ShareGPT_V4.3_unfiltered_cleaned_split.json --output hydra-vicuna-7b
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
    "learning_rate": 5e-4,
    "weight_decay": 0.1,
    "warmup": 0.005,
    "schedule": "cosine",
    "min_rate": 0.33,
}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--arch", choices=("prefix-mlp", "mlp"), default="prefix-mlp", help="mlp: plain Hydra")
    add("--num-heads", type=at_least(1), default=4, help="heads to train")
    add("--num-layers", type=at_least(1), default=4, help="blocks of a head, one of them repeated")
    add("--dropout", type=between(0, 0.99), default=0.2, help="before every block of prefix-mlp")
    add("--teacher-weight", type=between(0, 1e3), default=1.0, help="of the target's distribution")
    add("--lm-weight", type=between(0, 1e3), default=0.0, help="of the data's own token")


class HydraTraining(HeadTraining):
    """Head i (from 0) at position t reads tokens t+1 .. t+1+i and learns what follows them."""

    needs = ("last",)

    def __init__(self, args, target, data):
        from model.common.target.logits import check_logits, logit_factor
        from model.hydra.heads import HydraHeads, layer_config

        check_logits(target.model)
        self.args, self.target = args, target
        vocab_size = target.lm_head.weight.shape[0]
        config = layer_config(target.config, vocab_size)
        shape = (args.arch, args.num_heads, args.num_layers, args.dropout)
        self.module = HydraHeads(config, *shape)
        self.module.init_from(target.lm_head, logit_factor(target.config))

    def loss(self, batch):
        """Sum over the heads of mean cross-entropies; loss and agreement of each head.

        Head i at t is taught by the target at t + 1 + i, where token t + 2 + i is an answer's.
        """
        import torch

        from model.common.training.step import summed

        features = batch.hidden["last"]
        states, total, metrics = self.module.states(features), 0.0, {}
        for i in range(self.args.num_heads):
            sequence, place = batch.labelled(2 + i).nonzero(as_tuple=True)
            tokens = torch.stack([batch.ids[sequence, place + 1 + j] for j in range(i + 2)], 1)
            teacher = features[sequence, place + 1 + i]
            sums = summed(partial(self._scored, i), states[sequence, place], tokens, teacher)
            loss, taught, right = (value / max(len(tokens), 1) for value in sums)
            total = total + loss
            metrics |= {f"loss_{i + 1}": taught.detach(), f"accuracy_{i + 1}": right}
        return total, metrics

    def _scored(self, i: int, states, tokens, teacher):
        """Of head i, sums over rows: the loss, its cross-entropy with the target's law, agreement.

        states [N, H]; tokens [N, i + 2], the last of them to be guessed; teacher [N, H], what the
        target has read when it predicts that one
        """
        import torch
        from torch.nn.functional import cross_entropy

        read = self.target.embedding(tokens[:, :-1]).flatten(1).to(teacher.dtype)
        scores = self.module.guess(i, torch.cat([states, read], -1)).float()
        with torch.no_grad():
            wanted = self.target.logits(teacher)
        taught = cross_entropy(scores, wanted.softmax(-1), reduction="sum")
        loss = self.args.teacher_weight * taught
        if self.args.lm_weight:
            own = cross_entropy(scores, tokens[:, -1], reduction="sum")
            loss = loss + self.args.lm_weight * own
        return loss, taught, (scores.argmax(-1) == wanted.argmax(-1)).sum()

    def save(self, folder):
        """Write config.json and hydra_lm_head.pt, names as published."""
        from model.common.heads.checkpoint import save_checkpoint
        from model.hydra.heads import FILES, state_to_save

        config = {
            "base_model_name_or_path": self.args.model_path,
            "grounded_heads": True,
            "hidden_state_offset": 0,
            "hydra_head_arch": self.args.arch,
            "hydra_num_heads": self.args.num_heads,
            "hydra_num_layers": self.args.num_layers,
        }
        save_checkpoint(folder, config, FILES[1], state_to_save(self.module))


if __name__ == "__main__":
    main("train_hydra", __doc__, add_args, HydraTraining, RECIPE)
