"""Train EAGLE-3's head on a frozen target, with training-time test.

Source: Li et al., arXiv 2503.01840, section 3.2: the head is unrolled over its own outputs; step s
        weighs 0.8^s; no loss on features
Run:    python -m model.eagle3.train --model-path lmsys/vicuna-7b-v1.3 --template vicuna_v1.1
        --data sharegpt_and_ultrachat.jsonl --output eagle3-vicuna-7b --draft-vocab-size 32000
A step counts the rows whose predicted token is an answer's and whose best target token is in the
draft vocabulary, and is their mean, where the published script divides by all positions.
"""

from __future__ import annotations

from model.common.args import at_least, between
from model.common.training.trainer import HeadTraining, main

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 8192,
    "accumulate": 2,
    "learning_rate": 5e-5,
    "betas": [0.9, 0.95],
    "warmup": 0.015,
    "schedule": "linear",
    "clip_norm": 0.5,
}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--unroll", type=at_least(1), default=7, help="steps of training-time test")
    add("--step-decay", type=between(0, 1), default=0.8, help="weight of step s is this to the s")
    add("--draft-vocab-size", type=at_least(1), help="most frequent answer ids; none: all")
    add(
        "--lm-head-init",
        choices=("random", "target"),
        default="random",
        help="random: as published; target: its rows of those ids, for small budgets",
    )


class Eagle3Training(HeadTraining):
    """Row r of step s reads token r + 1 + s and predicts token r + 2 + s."""

    def __init__(self, args, target, data):
        from model.common.heads.head import CausalRows, head_fields, llama_config
        from model.eagle3.config import fused_layers
        from model.eagle3.head import Eagle3Module

        self.args, self.target = args, target
        self.layers = fused_layers(target.config.num_hidden_layers)
        self.needs = (*self.layers, "last")
        vocab = target.lm_head.weight.shape[0]
        self.ids = frequent_ids(data, vocab, args.draft_vocab_size or vocab)
        self.fields = {**head_fields(target.config), "vocab_size": vocab}
        self.fields["draft_vocab_size"] = len(self.ids)
        config = llama_config(self.fields)
        width = target.config.hidden_size
        self.module = Eagle3Module(config, len(self.ids), width, target.embedding)
        if hasattr(self.module, "d2t"):
            self.module.d2t.copy_(self.ids - self.ids.new_tensor(range(len(self.ids))))
            self.module.t2d[self.ids] = True
        if args.lm_head_init == "target":
            self.module.lm_head.weight.data.copy_(target.lm_head.weight[self.ids])
        self.rows = CausalRows(config, target.device)

    def loss(self, batch):
        """Decayed sum of the steps' cross-entropies; loss and accuracy of each step."""
        import torch

        features = torch.cat([batch.hidden[layer] for layer in self.layers], -1)
        rows = self.module.fuse(features)
        where, wanted = self._wanted(batch)
        past, total, metrics = [], 0.0, {}
        for step in range(self.args.unroll):
            embedded = self.module.embed(batch.ids.roll(-1 - step, 1))
            rows = self._layer(embedded, rows, step, past)
            sequence, place = where
            valid = place > step  # position p is predicted by row p - 1 - step
            guessed = rows[sequence[valid], place[valid] - 1 - step]
            logits = self.module.lm_head(self.module.norm(guessed)).float()
            goal = wanted[valid]
            count = max(len(goal), 1)
            loss = -(goal * logits.log_softmax(-1)).sum() / count
            total = total + self.args.step_decay**step * loss
            metrics[f"loss_{step + 1}"] = loss.detach()
            right = (logits.argmax(-1) == goal.argmax(-1)).sum()
            metrics[f"accuracy_{step + 1}"] = right / count
        return total, metrics

    def _wanted(self, batch):
        """((sequence, place), distributions [N, V_d]) of the target where both masks hold."""
        import torch

        chosen = batch.labelled(1)
        with torch.no_grad():
            logits = batch.logits(chosen)
            ids = self.ids.to(logits.device)
            inside = torch.isin(logits.argmax(-1), ids)
            sequence, place = chosen.nonzero(as_tuple=True)
            return (sequence[inside], place[inside]), logits[inside][:, ids].softmax(-1)

    def _layer(self, embedded, features, step: int, past: list):
        """One step of the layer; past: keys and values of the steps before, the new ones are added.

        Row r sees the first step's rows up to r, and of every later step its own row alone.
        """
        layer = self.module.midlayer
        attention = layer.self_attn
        inputs, residual = layer.inputs(embedded, features)
        query, key, value = attention.project(inputs, self.rows.rotary(features, step))
        past.append((key, value))
        attended = unrolled_attention(query, past, attention.scaling, self.rows.mask(features))
        return layer.finish(residual, attention.o_proj(attended))

    def save(self, folder):
        """Write config.json and model.safetensors, names as published."""
        from model.common.heads.checkpoint import save_checkpoint

        save_checkpoint(folder, self.fields, "model.safetensors", self.module.state_dict())


def frequent_ids(data, vocab_size: int, num_ids: int):
    """The ids most frequent in the training answers, ascending; small ids fill up, [num_ids]."""
    import torch

    from model.common.errors import BadInput

    if num_ids > vocab_size:
        raise BadInput(f"--draft-vocab-size {num_ids}: the target has {vocab_size} ids")
    counts = data.count_answers(vocab_size)
    return torch.sort(counts, descending=True, stable=True).indices[:num_ids].sort().values


def unrolled_attention(query, past: list, scaling: float, mask):
    """Attention of a step: causal over the first step's keys, then each later step's own row.

    query [B, heads, T, D]; past [(keys, values)] of [B, key heads, T, D]; mask [1, 1, T, T]
    additive. Returns [B, T, heads D].
    """
    import torch

    batch, heads, length, dim = query.shape
    key, value = past[0]
    query = query.reshape(batch, key.shape[1], -1, length, dim)  # [B, key heads, group, T, D]
    scores = [query @ key.unsqueeze(2).transpose(-1, -2) * scaling + mask.unsqueeze(2)]
    for own, _ in past[1:]:
        scores.append((query * own.unsqueeze(2)).sum(-1, keepdim=True) * scaling)
    weights = torch.cat(scores, -1).float().softmax(-1).to(value.dtype)
    out = weights[..., :length] @ value.unsqueeze(2)
    for place, (_, own) in enumerate(past[1:]):
        out = out + weights[..., length + place].unsqueeze(-1) * own.unsqueeze(2)
    return out.reshape(batch, heads, length, dim).transpose(1, 2).flatten(2)


if __name__ == "__main__":
    main("train_eagle3", __doc__, add_args, Eagle3Training, RECIPE)
