"""Train P-EAGLE's head on a frozen target: all depths of a draft in one pass over sampled rows.

Source: Hui et al., arXiv 2602.01469; vllm-project/speculators (its defaults)
Run:    python -m model.peagle.train --model-path lmsys/vicuna-7b-v1.3 --template vicuna_v1.1
        --data sharegpt_and_ultrachat.jsonl --output peagle-vicuna-7b --draft-vocab-size 32000
Rows count alike, whatever their depth: the loss is the mean cross-entropy with the target's
distribution over the draft vocabulary, where the predicted token is an answer's and the target's
best one is in that vocabulary. Positions are sampled by the sequence, where the published script
has one packed sequence a batch.
"""

from __future__ import annotations

from model.common.args import at_least, between
from model.common.training.trainer import main
from model.eagle3 import train as eagle3

RECIPE = {**eagle3.RECIPE, "learning_rate": 6e-4, "schedule": "cosine", "warmup": 0.01}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--num-layers", type=at_least(1), default=4, help="of the head")
    add("--num-depths", type=at_least(1), default=8, help="tokens of a draft that are learned")
    add("--keep-ratio", type=between(0, 1), default=0.7, help="depth d keeps this to the d of rows")
    add("--keep-least", type=between(0, 1), default=0.2, help="and not less than this share")
    add("--mask-id", type=at_least(0), help="token of mask rows; none: the target's pad_token_id")
    add(
        "--embedding",
        choices=("own", "target"),
        default="own",
        help="own: trained and stored, as published; target: the target's, not in the file",
    )
    eagle3.add_vocabulary(parser)


class PEagleTraining(eagle3.Eagle3Training):
    """Row (a, d) of cod.py predicts token a + d + 2."""

    def make_module(self, config):
        """As Eagle3Training has it; its embedding begins as the target's."""
        import copy

        from model.common.errors import BadInput
        from model.eagle3.config import Wiring
        from model.peagle.head import PEagleModule

        args, target = self.args, self.target
        self.mask_id = args.mask_id
        if self.mask_id is None:
            self.mask_id = getattr(target.config, "pad_token_id", None)
        if self.mask_id is None:
            raise BadInput("--mask-id is needed: the target's config has no pad_token_id")
        if self.mask_id >= self.fields["vocab_size"]:
            raise BadInput(f"--mask-id {self.mask_id}: {self.fields['vocab_size']} ids are there")
        self.fields |= {
            "architectures": ["LlamaForCausalLMEagle3"],
            "num_hidden_layers": args.num_layers,
            "parallel_drafting": True,
            "mask_token_id": self.mask_id,
        }
        owns = args.embedding == "own"
        embedding = target.embedding
        if owns:
            embedding = copy.deepcopy(embedding).float().cpu().requires_grad_(True)
        wiring, width = Wiring(len(self.layers)), target.config.hidden_size
        given = config, len(self.ids), width, embedding, owns, wiring
        return PEagleModule(*given, num_layers=args.num_layers)

    def loss(self, batch):
        """Mean cross-entropy of all rows; loss and accuracy of each depth."""
        from model.common.training.step import summed
        from model.peagle.cod import sampled_rows

        args = self.args
        learned = batch.labelled(2)
        rows = sampled_rows(learned, args.num_depths, args.keep_ratio, args.keep_least)
        sequence, place, goal, best = self.wanted(batch)
        number = place.new_full(batch.ids.shape, -1)  # of each place among the wanted ones
        number[sequence, place] = place.new_tensor(range(len(place)))
        after = (rows.position + 1).clamp(max=batch.ids.shape[1] - 1)
        wanted = number.gather(1, after).masked_fill(~rows.real, -1)
        # the row of the last token has no token after it: its place would be its own
        wanted = wanted.masked_fill(rows.position + 1 != after, -1)
        here = wanted >= 0
        outputs = self.outputs(batch, rows)[here]
        goal, best, depth = goal[wanted[here]], best[wanted[here]], rows.depth[here]
        total, metrics = 0.0, {}
        for step in range(args.num_depths):
            own = depth == step
            count = own.sum().clamp(min=1)
            loss, right = summed(self._scored, outputs[own], goal[own], best[own])
            total = total + loss
            metrics[f"loss_{step + 1}"] = loss.detach() / count
            metrics[f"accuracy_{step + 1}"] = right / count
        return total / max(len(outputs), 1), metrics

    def logits(self, rows):
        """Of the draft vocabulary, [.., H] -> [.., V_d]."""
        return self.module.lm_head(self.module.norm(rows))

    def outputs(self, batch, rows):
        """The head's outputs [B, R, H] at cod.Rows, all read in one pass."""
        import torch

        from model.common.target.attention import additive

        following = batch.ids.roll(-1, 1)
        anchors = rows.anchor.clamp(min=0)
        is_mask = rows.depth > 0
        tokens = following.gather(1, anchors).masked_fill(is_mask, self.mask_id)
        states = torch.cat([batch.hidden[layer] for layer in self.layers], -1)
        count = rows.anchor.shape[1] - states.shape[1]
        masks = self.module.mask_hidden.weight.expand(len(states), count, -1)
        states = torch.cat([states, masks], 1)  # anchors come first
        rotary = self.rows.rotary_at(states, rows.position)
        mask = additive(rows.visible(), states.dtype)
        return self.module((tokens, states), rotary, mask, None)

    def drafts(self, batch, depth):
        """See HeadTraining."""

        from model.peagle.cod import chain_rows

        anchors = batch.labelled(2)
        rows = chain_rows(anchors, depth)
        here = rows.real & ((rows.depth > 0) | anchors.gather(1, rows.anchor.clamp(min=0)))
        best = self.vocabulary.ids[self.logits(self.outputs(batch, rows)[here]).argmax(-1)]
        found = batch.ids.new_full((*batch.ids.shape, depth), -1)
        sequence, _ = here.nonzero(as_tuple=True)
        found[sequence, rows.anchor[here], rows.depth[here]] = best
        return found

    def save(self, folder):
        """Write config.json and model.safetensors, names as speculators'."""
        from model.common.heads.checkpoint import save_checkpoint
        from model.peagle.head import MASK

        state = {
            name.replace("midlayer.", "layers.0."): tensor
            for name, tensor in self.module.state_dict().items()
        }
        state[MASK] = state.pop(f"{MASK}.weight").unsqueeze(0)  # [1, 1, n H_t]
        save_checkpoint(folder, self.fields, "model.safetensors", state)


if __name__ == "__main__":
    main("train_peagle", __doc__, add_args, PEagleTraining, RECIPE)
