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
    add_vocabulary(parser)


def add_vocabulary(parser):
    """Flags of the head's output."""
    add = parser.add_argument
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
        from model.common.target.logits import check_logits, logit_factor
        from model.common.training.vocabulary import DraftVocabulary
        from model.eagle3.config import fused_layers

        check_logits(target.model)
        self.args, self.target = args, target
        self.layers = fused_layers(target.config.num_hidden_layers)
        self.needs = (*self.layers, "last", "best")
        vocab = target.lm_head.weight.shape[0]
        size = args.draft_vocab_size or vocab
        self.vocabulary = DraftVocabulary("--draft-vocab-size", data, target, size)
        self.ids = self.vocabulary.ids.cpu()
        self.fields = {**head_fields(target.config), "vocab_size": vocab}
        self.fields["draft_vocab_size"] = len(self.ids)
        config = llama_config(self.fields)
        self.module = self.make_module(config)
        if hasattr(self.module, "d2t"):
            self.module.d2t.copy_(self.ids - self.ids.new_tensor(range(len(self.ids))))
            self.module.t2d[self.ids] = True
        if args.lm_head_init == "target":
            rows = target.lm_head.weight[self.ids].float() * logit_factor(target.config)
            self.module.lm_head.weight.data.copy_(rows)
        self.rows = CausalRows(config, target.device)

    def make_module(self, config):
        """The head that is trained, of a LlamaConfig."""
        from model.eagle3.head import Eagle3Module

        width = self.target.config.hidden_size
        return Eagle3Module(config, len(self.ids), width, self.target.embedding)

    def loss(self, batch):
        """Decayed sum of the steps' cross-entropies; loss and accuracy of each step."""
        import torch

        from model.common.training.step import summed
        from model.common.training.unroll import Places

        depth = self.args.unroll
        places = Places(torch.stack([batch.labelled(2 + s) for s in range(depth)]).any(0))
        query = places.spread(places.valid.cumsum(1) - 1, 0)  # [B, T] which of the places a row is
        sequence, place, goal, best = self.wanted(batch)
        total, metrics = 0.0, {}
        for step, rows in enumerate(self.states(batch, places, depth)):
            row = place - 1 - step  # which predicts what follows `place`
            valid = slice(None) if bool((row >= 0).all()) else row >= 0
            here = sequence[valid], query[sequence[valid], row[valid]]
            sums = summed(self._scored, rows[here], goal[valid], best[valid])
            loss, right = (value / max(len(here[0]), 1) for value in sums)
            total = total + self.args.step_decay**step * loss
            metrics |= {f"loss_{step + 1}": loss.detach(), f"accuracy_{step + 1}": right}
        return total, metrics

    def _scored(self, rows, goal, best):
        """Sums over rows [N, H]: the cross-entropy with goal [N, V_d], how often best [N] is it."""
        from model.common.training.unroll import soft_cross_entropy

        logits = self.module.lm_head(self.module.norm(rows)).float()
        return soft_cross_entropy(goal, logits), (logits.argmax(-1) == best).sum()

    def wanted(self, batch):
        """(sequence, place [N], distributions [N, V_d], their best [N]) of the target where it
        predicts an answer's token and its best one is in the draft vocabulary."""
        import torch

        with torch.no_grad():
            sequence, place = batch.labelled(1).nonzero(as_tuple=True)
            inside, best = self.vocabulary.places(batch.hidden["best"][sequence, place])
            sequence, place = sequence[inside], place[inside]
            states = batch.hidden["last"][sequence, place]
            goal = batch.target.logits(states, self.vocabulary.head).softmax(-1)
            return sequence, place, goal, best.squeeze(1)

    def states(self, batch, places, depth: int):
        """The head's rows [B, Q, H] at places, of each step unrolled over its own outputs."""
        import torch

        from model.common.training.unroll import Unrolled

        layer, unrolled = self.module.midlayer, Unrolled(self.rows, places)
        rows = self.module.fuse(torch.cat([batch.hidden[layer] for layer in self.layers], -1))
        for step in range(depth):
            tokens = places.tokens(batch.ids, step) if step else batch.ids.roll(-1, 1)
            inputs, residual = layer.inputs(self.module.embed(tokens), rows)
            attended = unrolled.attend(layer.self_attn, inputs)
            rows = layer.finish(residual if step else places.of(residual), attended)
            yield rows

    def drafts(self, batch, depth):
        """See HeadTraining."""
        import torch

        from model.common.training.unroll import Places

        places, found = Places(batch.labelled(2)), []
        for rows in self.states(batch, places, depth):
            logits = self.module.lm_head(self.module.norm(rows))
            found.append(places.spread(self.vocabulary.ids[logits.argmax(-1)], -1))
        return torch.stack(found, -1)

    def save(self, folder):
        """Write config.json and model.safetensors, names as published."""
        from model.common.heads.checkpoint import save_checkpoint

        save_checkpoint(folder, self.fields, "model.safetensors", self.module.state_dict())


if __name__ == "__main__":
    main("train_eagle3", __doc__, add_args, Eagle3Training, RECIPE)
