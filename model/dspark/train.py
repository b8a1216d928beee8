"""Train a DSpark head on a frozen target: blocks behind random anchors of its answers.

Source: Cheng et al., arXiv 2607.05147; github.com/deepseek-ai/DeepSpec
Run:    python -m model.dspark.train --model-path Qwen/Qwen3-4B --data answers.jsonl
        --template-args '{"enable_thinking": false}' --output dspark-qwen3-4b --mask-token-id 151669
A slot's loss is --ce-weight times the cross-entropy with the text's token, --l1-weight times the
distance of its law to the target's (0 to 2), and --confidence-weight times the cross-entropy of its
confidence with what would be accepted, 1 - distance / 2; each given the text's token before.
"""

from __future__ import annotations

from model.common.args import at_least, between
from model.common.training.trainer import main
from model.dflash import training

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 4096,
    "learning_rate": 6e-4,
    "warmup": 0.04,
    "schedule": "cosine",
    "clip_norm": 1.0,
}


def add_args(parser):
    """Flags that only this method has."""
    training.add_block_args(parser, 7)
    add, any_size = parser.add_argument, between(0, 1e3)
    kinds = ("vanilla", "gated", "rnn")
    add("--markov-rank", type=at_least(0), default=256, help="of the transition; 0 = none")
    add("--markov-head", choices=kinds, default="vanilla", help="how it depends on the text")
    add("--confidence-head", choices=("on", "off"), default="on", help="learn where to end a draft")
    add("--ce-weight", type=any_size, default=0.1, help="of the cross-entropy")
    add("--l1-weight", type=any_size, default=0.9, help="of the distance of laws")
    add("--confidence-weight", type=any_size, default=1.0, help="of the confidence's loss")


class DSparkTraining(training.BlockTraining):
    """Row j of a block predicts the token behind it: the anchor's row too."""

    def __init__(self, args, target, data):
        from functools import partial

        from model.dspark.head import DSparkModule, read_markov

        fields = training.block_fields(args, target.config, target.lm_head.weight.shape[0])
        confidence = args.confidence_head == "on"
        fields |= {"architectures": ["Qwen3DSparkModel"], "num_anchors": args.anchors}
        fields |= {"markov_rank": args.markov_rank, "enable_confidence_head": confidence}
        if args.markov_rank:
            fields["markov_head_type"] = args.markov_head
        if confidence:
            fields["confidence_head_with_markov"] = args.markov_rank > 0
        markov = read_markov(fields, "config.json")
        self.prepare(args, target, fields, partial(DSparkModule, markov=markov))

    def loss(self, batch):
        """Weighted mean over slots of the three; each, and accuracy and acceptance of each slot."""
        sums, args = self.over_blocks(batch), self.args
        shares = {"cross_entropy": args.ce_weight, "distance": args.l1_weight}
        if self.module.markov.confidence:
            shares["confidence"] = args.confidence_weight
        parts = {name: sums[name] / (sums["weight"] + 1e-6) for name in shares}
        metrics = {name: part.detach() for name, part in parts.items()}
        metrics |= self.means_by_slot(sums, accuracy="right", accepted="accepted")
        return sum(shares[name] * part for name, part in parts.items()), metrics

    def sums(self, blocks):
        """See BlockTraining: weighted losses and weights, right tokens and acceptance by slot."""
        from torch.nn import functional

        counted, goal = blocks.counted, blocks.labels[blocks.counted]
        logits = self.taught(blocks.states, blocks.before)[counted]
        weights, law = self.slot_weights(counted), self.target.logits(blocks.target).softmax(-1)
        entropy = functional.cross_entropy(logits, goal, reduction="none")
        distance = (logits.softmax(-1) - law).abs().sum(-1)
        accepted = (1 - 0.5 * distance).detach()
        parts = {"cross_entropy": entropy, "distance": distance}
        if self.module.markov.confidence:
            said = self.module.confidence(blocks.before, blocks.states)[counted].float()
            parts["confidence"] = functional.binary_cross_entropy_with_logits(
                said, accepted.clamp(0, 1), reduction="none"
            )
        sums = {name: (weights * part).sum() for name, part in parts.items()}
        sums |= self.by_slot(counted, right=logits.argmax(-1) == goal, accepted=accepted)
        return sums | {"weight": weights.sum()}

    def taught(self, states, before):
        """float32 logits [B, A, n, V] of states [B, A, n, H], given the tokens before [B, A, n]."""
        import torch

        base, memory, slots = self.logits(states), None, []
        for slot in range(states.shape[2]):
            given = base[:, :, slot], before[:, :, slot], states[:, :, slot], memory
            logits, memory = self.module.corrected(*given)
            slots.append(logits)
        return torch.stack(slots, 2).float()

    def best(self, states, roots):
        """See BlockTraining; each given the token chosen before."""
        import torch

        base, memory, before, tokens = self.logits(states), None, roots, []
        for slot in range(states.shape[2]):
            given = base[:, :, slot], before, states[:, :, slot], memory
            logits, memory = self.module.corrected(*given)
            before = logits.argmax(-1)
            tokens.append(before)
        return torch.stack(tokens, -1)

    def save(self, folder):
        """Write config.json and model.safetensors as DeepSpec does: with the target's matrices."""
        from model.common.heads.checkpoint import save_checkpoint

        state, dtype = self.module.state_dict(), self.module.fc.weight.dtype
        state["embed_tokens.weight"] = self.target.embedding.weight.to(dtype, copy=True)
        state["lm_head.weight"] = self.target.lm_head.weight.to(dtype, copy=True)
        save_checkpoint(folder, self.fields, "model.safetensors", state)


if __name__ == "__main__":
    main("train_dspark", __doc__, add_args, DSparkTraining, RECIPE)
