"""What trainings of block drafters share: flags, config, blocks of a batch, greedy chains."""

from __future__ import annotations

from model.common.args import at_least, between
from model.common.training.trainer import HeadTraining

PIECE = 1 << 27  # numbers of the largest tensor of a piece of a batch: 0.5 GB in float32


def add_block_args(parser, block_size: int, num_anchors: int = 512) -> None:
    """Flags of blocks, which DSpark's training has too."""
    add = parser.add_argument
    add("--mask-token-id", type=at_least(0), required=True, help="id of masks: unused by texts")
    add("--block-size", type=at_least(1), default=block_size, help="rows of a block")
    add("--num-layers", type=at_least(1), default=5, help="layers of the head")
    add(
        "--layer-ids",
        help="of the target's layers whose outputs are read, separated by commas, from 0 (default: "
        "as many as the head has layers, spread)",
    )
    add("--anchors", type=at_least(1), default=num_anchors, help="blocks of a sequence, at most")
    add(
        "--slot-decay",
        type=between(1e-3, 1e6),
        help="slots over which a slot's weight falls to 1 / e (default: 7, 5 or 4 by block size)",
    )


def block_fields(args, config, vocab: int) -> dict:
    """config.json of a new head: Qwen3's layer with the target's sizes, blocks as the flags say."""
    from model.common.errors import BadInput
    from model.common.heads.head import head_fields
    from model.dflash.config import spread_layers

    num_layers = config.num_hidden_layers
    try:
        ids = [int(one) for one in args.layer_ids.split(",")] if args.layer_ids else []
    except ValueError as error:
        raise BadInput(f"--layer-ids {args.layer_ids}: numbers separated by commas") from error
    if args.mask_token_id >= vocab:
        raise BadInput(f"--mask-token-id {args.mask_token_id}: the target has {vocab} ids")
    fields = head_fields(config)
    heads = fields["num_attention_heads"]
    fields |= {
        "model_type": "qwen3",
        "head_dim": getattr(config, "head_dim", None) or fields["hidden_size"] // heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "vocab_size": vocab,
    }
    fields |= {"num_hidden_layers": args.num_layers, "num_target_layers": num_layers}
    fields |= {"attention_bias": False, "layer_types": ["full_attention"] * args.num_layers}
    fields |= {"block_size": args.block_size, "tie_word_embeddings": False}
    ids = ids or list(spread_layers(num_layers, args.num_layers))
    return {**fields, "target_layer_ids": ids, "mask_token_id": args.mask_token_id}


class BlockTraining(HeadTraining):
    """A head of blocks; make(config, design, H_t) gives its module, of flat fields.

    A batch's blocks are computed in pieces, each once more for its gradients, so that memory does
    not grow with --anchors: a loss is made of sums over slots.
    """

    def prepare(self, args, target, fields: dict, make) -> None:
        """Take an empty module and what its blocks are made from."""
        from types import SimpleNamespace

        from model.common.heads.head import CausalRows
        from model.dflash.config import flat_fields, read_design
        from model.dflash.head import layer_config

        self.args, self.target, self.fields = args, target, fields
        vocab = target.lm_head.weight.shape[0]
        known = SimpleNamespace(config=target.config, vocab_size=vocab)
        flat = flat_fields(fields, "config.json")
        design = read_design(flat, "config.json", known)
        if design.num_drafts < 1:
            from model.common.errors import BadInput

            raise BadInput("--block-size 1: the root alone drafts nothing")
        config = layer_config(flat, "config.json", known)
        self.module = make(config, design, target.config.hidden_size)
        self.module.borrow(target.embedding, target.lm_head)
        self.rotary = CausalRows(config, target.device).rotary_at
        self.needs = (*dict.fromkeys(design.states), "last")

    def sums(self, blocks) -> dict:
        """Sums over the slots that count of some Blocks, by name, of which loss() is made."""
        raise NotImplementedError

    def over_blocks(self, batch) -> dict:
        """self.sums() over blocks behind a batch's anchors, drawn anew; where there are several
        pieces only their sums are kept, and each is computed again for its gradients."""
        from functools import partial

        from torch.utils.checkpoint import checkpoint

        from model.dflash.blocks import choose_anchors, pieces

        anchors, valid = choose_anchors(batch.mask, self.args.anchors)
        text = self.text(batch)

        def sums(anchors, valid, some):
            return self.sums(self.read(batch, text, anchors, valid, some))

        parts, compute = pieces(*anchors.shape, self.most_blocks(batch)), sums
        if len(parts) > 1:
            compute = partial(checkpoint, sums, use_reentrant=False, preserve_rng_state=False)
        found = [compute(anchors[part], valid[part], part[0]) for part in parts]
        return {name: sum(one[name] for one in found) for name in found[0]}

    def most_blocks(self, batch) -> int:
        """Blocks of a piece: neither logits nor attention weights have more numbers than PIECE."""
        fields, design = self.fields, self.module.design
        columns = batch.ids.shape[1] + design.block_size
        weights = fields["num_attention_heads"] * design.block_size * columns
        return max(PIECE // max(weights, design.num_drafts * fields["vocab_size"]), 1)

    def text(self, batch):
        """BlockRows of a batch."""
        import torch

        from model.dflash.blocks import BlockRows

        states = [batch.hidden[layer] for layer in self.module.design.states]
        return BlockRows(self.module, self.rotary, torch.cat(states, -1))

    def read(self, batch, text, anchors, valid, some: slice):
        """Blocks behind anchors [S, A], where they are valid, of some S of a batch's sequences."""
        import torch

        from model.dflash.blocks import Blocks, block_labels

        size, ids, last = self.module.design.num_drafts, batch.ids[some], batch.hidden["last"][some]
        labels, counted = block_labels(ids, batch.mask[some], anchors, valid, size)
        roots = ids.gather(1, anchors)
        before = torch.cat([roots.unsqueeze(-1), labels[..., :-1]], -1)
        sequence, anchor, slot = counted.nonzero(as_tuple=True)
        target = last[sequence, anchors[sequence, anchor] + slot]  # row s + k - 1, slot from 0
        return Blocks(text.states(anchors, roots, some), before, labels, counted, target)

    def slot_weights(self, counted):
        """Decaying weights [N] of the slots that count."""
        from model.dflash.blocks import decayed, usual_decay

        decay = self.args.slot_decay or usual_decay(self.module.design.block_size)
        weights = decayed(counted.shape[2], decay).to(counted.device)
        return weights.expand(counted.shape)[counted]

    def by_slot(self, counted, **values) -> dict:
        """Sums [n] of each slot, of values [N], by name, and `slots`: how many of each count."""
        sums = {"slots": counted.sum((0, 1))}
        for name, value in values.items():
            whole = counted.float()
            whole[counted] = value.detach().float()
            sums[name] = whole.sum((0, 1))
        return sums

    def means_by_slot(self, sums: dict, **names) -> dict:
        """Of by_slot()'s sums: {"NAME_k": mean} of slots 1 .. n; names: {NAME: of the sum}."""
        counts, found = sums["slots"].clamp(min=1), {}
        for name, own in names.items():
            found |= {f"{name}_{k}": mean for k, mean in enumerate(sums[own] / counts, 1)}
        return found

    def drafts(self, batch, depth):
        """See HeadTraining: blocks behind every token of the answers, in pieces."""
        from model.dflash.blocks import choose_anchors, pieces

        anchors, valid = choose_anchors(batch.mask, None)
        text, size = self.text(batch), min(depth, self.module.design.num_drafts)
        found = batch.ids.new_full((*batch.ids.shape, depth), -1)
        for part in pieces(*anchors.shape, self.most_blocks(batch)):
            behind, some = anchors[part], part[0]
            roots = batch.ids[some].gather(1, behind)
            tokens = self.best(text.states(behind, roots, some)[:, :, :size], roots)
            sequence, place = (valid[part] & (behind > 0)).nonzero(as_tuple=True)
            rows = behind[sequence, place] - 1
            found[some][sequence, rows, :size] = tokens[sequence, place]
        return found

    def logits(self, states):
        """float32 logits [.., V] of states [.., H], by the target's LM head."""
        return self.module.logits(states.to(self.target.dtype)).float()

    def best(self, states, roots):
        """Greedy chains [B, A, n] of states [B, A, n, H]."""
        return self.logits(states).argmax(-1)
