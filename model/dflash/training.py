"""What trainings of block drafters share: flags, config, blocks of a batch, greedy chains."""

from __future__ import annotations

from model.common.args import at_least, between
from model.common.training.trainer import HeadTraining

DEPTH = 64  # anchors whose blocks are read at a time where nothing is learned


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
    dim = fields["hidden_size"] // fields["num_attention_heads"]
    fields |= {"model_type": "qwen3", "head_dim": dim, "vocab_size": vocab}
    fields |= {"num_hidden_layers": args.num_layers, "num_target_layers": num_layers}
    fields |= {"attention_bias": False, "layer_types": ["full_attention"] * args.num_layers}
    fields |= {"block_size": args.block_size, "tie_word_embeddings": False}
    ids = ids or list(spread_layers(num_layers, args.num_layers))
    return {**fields, "target_layer_ids": ids, "mask_token_id": args.mask_token_id}


class BlockTraining(HeadTraining):
    """A head of blocks; make(config, design, H_t) gives its module, of flat fields."""

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

    def blocks(self, batch, anchors):
        """BlockRows of a batch behind anchors [B, A]."""
        import torch

        from model.dflash.blocks import BlockRows

        states = [batch.hidden[layer] for layer in self.module.design.states]
        return BlockRows(self.module, self.rotary, torch.cat(states, -1), anchors)

    def read(self, batch, num: int | None):
        """(states [B, A, n, H], roots [B, A], labels, counted [B, A, n], anchors) of blocks."""
        from model.dflash.blocks import block_labels, choose_anchors

        anchors, valid = choose_anchors(batch.mask, num)
        size = self.module.design.num_drafts
        labels, counted = block_labels(batch.ids, batch.mask, anchors, valid, size)
        roots = batch.ids.gather(1, anchors)
        states = self.blocks(batch, anchors).states(self.module, roots)
        return states, roots, labels, counted, anchors

    def laws(self, batch, anchors, counted):
        """The target's logits [N, V] where slots count."""
        import torch

        steps = torch.arange(counted.shape[2], device=anchors.device)
        places = anchors.unsqueeze(-1) + steps  # token s + k is foretold by row s + k - 1
        sequence, anchor, slot = counted.nonzero(as_tuple=True)
        return batch.target.logits(batch.hidden["last"][sequence, places[sequence, anchor, slot]])

    def slot_weights(self, counted):
        """Decaying weights [N] of the slots that count, and each one's slot [N]."""
        from model.dflash.blocks import decayed, usual_decay

        decay = self.args.slot_decay or usual_decay(self.module.design.block_size)
        weights = decayed(counted.shape[2], decay).to(counted.device)
        slots = counted.nonzero(as_tuple=True)[2]
        return weights[slots], slots

    def accuracies(self, right, slots) -> dict:
        """{"accuracy_k": share} of slots 1 .. n, from right [N] bool and slots [N]."""
        found = {}
        for slot in range(self.module.design.num_drafts):
            here = right[slots == slot]
            found[f"accuracy_{slot + 1}"] = here.sum() / max(len(here), 1)
        return found

    def drafts(self, batch, depth):
        """See HeadTraining: blocks behind every token of the answers, DEPTH at a time."""
        from model.dflash.blocks import choose_anchors

        anchors, valid = choose_anchors(batch.mask, None)
        size = min(depth, self.module.design.num_drafts)
        found = batch.ids.new_full((*batch.ids.shape, depth), -1)
        for some, here in zip(anchors.split(DEPTH, 1), valid.split(DEPTH, 1)):
            roots = batch.ids.gather(1, some)
            states = self.blocks(batch, some).states(self.module, roots)
            tokens = self.best(states[:, :, :size], roots)
            sequence, place = (here & (some > 0)).nonzero(as_tuple=True)
            rows = some[sequence, place] - 1
            found[sequence, rows, :size] = tokens[sequence, place]
        return found

    def logits(self, states):
        """float32 logits [.., V] of states [.., H], by the target's LM head."""
        return self.module.logits(states.to(self.target.dtype)).float()

    def best(self, states, roots):
        """Greedy chains [B, A, n] of states [B, A, n, H]."""
        return self.logits(states).argmax(-1)
