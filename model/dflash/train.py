"""Train a DFlash or DFlash2 head on a frozen target: blocks behind random anchors of its answers.

Source: Chen et al., arXiv 2602.06036, as github.com/NVIDIA-NeMo/Automodel restates its recipe
Run:    python -m model.dflash.train --model-path Qwen/Qwen3-4B --data answers.jsonl
        --template-args '{"enable_thinking": false}' --output dflash-qwen3-4b --mask-token-id 151669
        (DFlash2: --block-size 8 --conv-kernel-size 2 --selector-rank 256)
A block that the answer's end cuts short learns what is left of it. Slots are weighed, and the loss
is their weighted mean. The data are answers of the same --template-args.
"""

from __future__ import annotations

from model.common.args import at_least
from model.common.training.trainer import main
from model.dflash import training

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 3072,
    "learning_rate": 6e-4,
    "betas": [0.9, 0.95],
    "warmup": 0.04,
    "schedule": "cosine",
    "min_rate": 0.1,
    "clip_norm": 1.0,
}
GROUP = 16  # channels of a group of DFlash2's convolutions


def add_args(parser):
    """Flags that only this method has."""
    training.add_block_args(parser, 16)
    add = parser.add_argument
    add("--loss", choices=("ce", "kl"), default="ce", help="of the text's tokens or target's laws")
    add("--weights", choices=("decay", "d-pace"), default="decay", help="of a block's slots")
    add("--conv-kernel-size", type=at_least(0), default=0, help="DFlash2: taps; 0 = none")
    add("--selector-rank", type=at_least(0), default=0, help="DFlash2's selector; 0 = none")
    add("--selector-top-k", type=at_least(2), default=16, help="candidates of a slot")


def nested(fields: dict) -> dict:
    """config.json as z-lab writes it, of flat fields."""
    own = ("target_layer_ids", "mask_token_id", "conv_kernel_size", "conv_group_size")
    own += ("selector_rank", "selector_top_k")
    rest = {name: value for name, value in fields.items() if name not in own}
    return {**rest, "dflash_config": {name: fields[name] for name in own if name in fields}}


class DFlashTraining(training.BlockTraining):
    """Slots learn the text's tokens, or the target's laws; DFlash2's selector learns to choose
    among a slot's candidates, given the text's token before, where its token is among them."""

    def __init__(self, args, target, data):
        from model.dflash.backbone import BlockModule

        fields = training.block_fields(args, target.config, target.lm_head.weight.shape[0])
        second = args.conv_kernel_size or args.selector_rank
        fields["architectures"] = ["DFlash2DraftModel" if second else "DFlashDraftModel"]
        if args.conv_kernel_size:
            fields |= {"conv_kernel_size": args.conv_kernel_size, "conv_group_size": GROUP}
        if args.selector_rank:
            fields |= {"selector_rank": args.selector_rank, "selector_top_k": args.selector_top_k}
        self.prepare(args, target, fields, BlockModule)
        for layer in self.module.layers if args.conv_kernel_size else ():  # begins as plain DFlash
            for conv in (layer.attention_conv, layer.mlp_conv):
                conv.base_kernel.data[:, 0] = 1
                conv.kernel_projection.weight.data.zero_()

    def loss(self, batch):
        """Weighted mean over slots, plus the selector's; loss, and accuracy of each slot."""
        sums = self.over_blocks(batch)
        num = sums["slots"].sum().clamp(min=1)
        loss = sums["taught"] / sums["weight"].clamp(min=1e-6)
        metrics = {"cross_entropy": sums["cross_entropy"] / num}
        if self.module.design.selector:
            loss = loss + sums["chosen"] / sums["chosen_weight"].clamp(min=1e-6)
            metrics["candidate_recall"] = sums["found"] / num
        return loss, metrics | self.means_by_slot(sums, accuracy="right")

    def sums(self, blocks):
        """See BlockTraining: weighted losses and weights, plain losses, right tokens by slot."""
        import torch
        from torch.nn.functional import cross_entropy

        from model.dflash.blocks import paced

        counted, goal = blocks.counted, blocks.labels[blocks.counted]
        logits = self.logits(blocks.states[counted])  # [N, V]
        losses = cross_entropy(logits, goal, reduction="none")
        weights = self.slot_weights(counted)
        if self.args.weights == "d-pace":
            whole = torch.zeros(counted.shape, device=losses.device)
            whole[counted] = losses.detach()
            weights = paced(whole, counted)[counted]
        taught = losses
        if self.args.loss == "kl":
            law = self.target.logits(blocks.target).log_softmax(-1)
            taught = (law.exp() * (law - logits.log_softmax(-1))).sum(-1)
        sums = {"taught": (weights * taught).sum(), "weight": weights.sum()}
        sums["cross_entropy"] = losses.detach().sum()
        if self.module.design.selector:
            sums |= self.selector_sums(blocks, logits, weights)
        return sums | self.by_slot(counted, right=logits.argmax(-1) == goal)

    def selector_sums(self, blocks, logits, weights):
        """Weighted cross-entropies among candidates of logits [N, V] that hold the slot's token,
        their weights, and how many they are."""
        from torch.nn.functional import cross_entropy

        selector, counted = self.module.candidate_selector, blocks.counted
        own, ids = logits.topk(min(selector.num_candidates, logits.shape[-1]), -1)
        found = ids == blocks.labels[counted].unsqueeze(-1)
        inside = found.any(-1)
        given = blocks.states[counted], blocks.before[counted], ids, own
        scores = selector(*(part[inside] for part in given)).float()
        losses = cross_entropy(scores, found[inside].int().argmax(-1), reduction="none")
        sums = {"chosen": (weights[inside] * losses).sum(), "chosen_weight": weights[inside].sum()}
        return sums | {"found": inside.sum()}

    def best(self, states, roots):
        """See BlockTraining; with the selector's walk."""
        import torch

        logits, design = self.logits(states), self.module.design
        if not design.selector:
            return logits.argmax(-1)
        own, ids = logits.topk(min(design.selector[1], logits.shape[-1]), -1)
        before, tokens = roots, []
        for slot in range(states.shape[2]):
            given = states[:, :, slot], before, ids[:, :, slot], own[:, :, slot]
            place = self.module.candidate_selector(*given).argmax(-1, keepdim=True)
            before = ids[:, :, slot].gather(-1, place).squeeze(-1)
            tokens.append(before)
        return torch.stack(tokens, -1)

    def save(self, folder):
        """Write config.json and model.safetensors as z-lab names them."""
        from model.common.heads.checkpoint import save_checkpoint

        state = self.module.state_dict()
        save_checkpoint(folder, nested(self.fields), "model.safetensors", state)


if __name__ == "__main__":
    main("train_dflash", __doc__, add_args, DFlashTraining, RECIPE)
