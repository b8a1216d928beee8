"""Train EAGLE's head (for EAGLE and EAGLE-2) on a frozen target.

Source: Li et al., arXiv 2401.15077, section 4.1: regression on the next feature plus 0.1 times the
        cross-entropy of its logits with the target's; noise on the features
Run:    python -m model.eagle.train --model-path lmsys/vicuna-7b-v1.3 --template vicuna_v1.1
        --data ShareGPT_V4.3_unfiltered_cleaned_split.json --output eagle-vicuna-7b
A row counts where the token that it predicts is an answer's.
"""

from __future__ import annotations

from model.common.args import between
from model.common.training.trainer import HeadTraining, main

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 8192,
    "learning_rate": 3e-5,
    "betas": [0.9, 0.95],
    "weight_decay": 0.01,
    "warmup": 0.0025,
    "schedule": "linear",
    "clip_value": 0.5,
}
NOISE_LENGTH = 512  # tokens for which --noise is the amplitude; it falls with longer sequences


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--reg-weight", type=between(0, 1e3), default=1.0, help="of the features' smooth L1")
    add("--cls-weight", type=between(0, 1e3), default=0.1, help="of the logits' cross-entropy")
    add("--noise", type=between(0, 10), default=0.1, help="amplitude at 512 tokens; 0 = none")
    add("--bias", choices=("on", "off"), default="on", help="of the first linear layer")


class EagleTraining(HeadTraining):
    """Row i reads feature i and token i + 1, and learns feature i + 1 and what follows from it."""

    needs = ("last",)

    def __init__(self, args, target, data):
        from model.common.heads.head import CausalRows, head_fields, llama_config
        from model.eagle.head import EagleModule

        self.args, self.target = args, target
        self.fields = head_fields(target.config)
        self.fields |= {"vocab_size": target.lm_head.weight.shape[0], "bias": args.bias == "on"}
        config = llama_config(self.fields)
        self.module = EagleModule(config, args.bias == "on", target.embedding, target.lm_head)
        self.rows = CausalRows(config, target.device)

    def loss(self, batch):
        """Weighted sum of both losses, means over rows; each, and top-1 to 3 agreement."""
        import torch
        from torch.nn.functional import smooth_l1_loss

        features = batch.hidden["last"]
        chosen = batch.labelled(2)[:, :-1]  # rows that predict an answer's token
        following = features[:, 1:][chosen]
        guessed = self.guess(self.noisy(features)[:, :-1], batch.ids[:, 1:])[chosen]
        regression = smooth_l1_loss(guessed, following)
        with torch.no_grad():
            wanted = batch.target.logits(following)
        logits = self.target.lm_head(guessed.to(self.target.dtype)).float()
        entropy = -(wanted.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
        best = logits.detach().topk(3, dim=-1).indices == wanted.argmax(-1, keepdim=True)
        metrics = {f"top_{k}": best[:, :k].any(-1).float().mean() for k in (1, 2, 3)}
        metrics |= {"regression": regression.detach(), "cross_entropy": entropy.detach()}
        loss = self.args.reg_weight * regression + self.args.cls_weight * entropy
        return loss, metrics

    def guess(self, features, following):
        """Next features [B, T, H] of all rows; following [B, T]: the token after each."""
        import torch

        embedded = self.target.embedding(following).to(features.dtype)
        rows = self.module.fc(torch.cat([embedded, features], -1))
        return self.module.layers[0](rows, self.rows.rotary(rows), self.rows.mask(rows), None)

    def noisy(self, features):
        """Features with uniform noise while training."""
        import torch

        if not self.module.training or not self.args.noise:
            return features
        scale = 2 * self.args.noise * NOISE_LENGTH / max(features.shape[1], 1)
        return features + (torch.rand_like(features) - 0.5) * scale

    def save(self, folder):
        """Write config.json and model.safetensors, names as published."""
        from model.common.heads.checkpoint import save_checkpoint

        dtype = self.module.fc.weight.dtype
        state = self.module.state_dict()
        state["embed_tokens.weight"] = self.target.embedding.weight.to(dtype)
        save_checkpoint(folder, self.fields, "model.safetensors", state)


if __name__ == "__main__":
    main("train_eagle", __doc__, add_args, EagleTraining, RECIPE)
