"""P-EAGLE by its formulas: one pass over the whole sequence and the mask rows, without a cache.

faults: mistakes that load without complaint and cost acceptance only.

    layers    the layers above the first are overlooked
    state     mask rows read zeros in place of the mask state
    token     mask rows read the last token in place of the mask token
    position  mask rows sit at the last committed row's position
    alone     a mask row does not see the mask rows before it
"""

import torch
from eagle_slow import SlowHead, rms_norm

FAULTS = ("layers", "state", "token", "position", "alone")


class SlowPEagle(SlowHead):
    """A head's directory and a plain target; layers: of the target, None = the usual three."""

    def __init__(self, folder, model, fault=None, layers=None):
        super().__init__(folder, model, 3, fault, layers)
        self.config["embed_requires_grad"] = True  # where the file has an embedding
        self.num_layers = len({name.split(".")[1] for name in self.t if name.startswith("layers.")})

    @torch.inference_mode()
    def laws(self, ids, num):
        """Laws [num, V_d] of the tokens behind the root, ids[-1]."""
        real, mask = self.states(ids[:-1]), self.t["mask_hidden"].flatten()
        mask = torch.zeros_like(mask) if self.fault == "state" else mask
        features = self.fused(list(mask.unsqueeze(0).chunk(len(self.layers), -1)))
        named = self.config.get("mask_token_id") or self.config.get("ptd_token_id")
        token = ids[-1] if self.fault == "token" else int(named)
        tokens = torch.tensor([*ids[1:], *[token] * (num - 1)])
        features = torch.cat([real, features.expand(num - 1, -1)])
        table = self.t.get("embed_tokens.weight", self.model.model.embed_tokens.weight)
        last = len(real) - 1
        if self.fault == "alone":  # every mask row in a pass of its own
            parts = [torch.tensor([*range(last + 1), *[last + more] * bool(more)])
                     for more in range(num)]  # fmt: skip
        else:
            parts = [torch.arange(last + num)]
        found = [self.through(table[tokens[part]], features[part], part, last) for part in parts]
        rows = torch.cat([rows[-1:] for rows in found]) if len(parts) > 1 else found[0][last:]
        normed = rms_norm(rows, self.t["norm.weight"])
        head = self.t.get("lm_head.weight", self.model.lm_head.weight)
        return (normed @ head.T).float().softmax(-1)

    def through(self, embedded, features, positions, last):
        """All layers' output at rows of these positions."""
        if self.fault == "position":
            positions = positions.clamp(max=last)
        self.layer = 0
        rows = self.eagle3(embedded, features, positions)
        for layer in range(1, 1 if self.fault == "layers" else self.num_layers):
            self.layer = layer
            normed = rms_norm(rows, self.t[f"layers.{layer}.input_layernorm.weight"])
            rows = self.mlp(rows + self.attention(normed, positions))
        return rows

    def target_ids(self):
        """The target's id of every one of the draft's."""
        shift = self.t.get("d2t", torch.zeros(self.config["vocab_size"], dtype=torch.long))
        return torch.arange(len(shift)) + shift

    def drafts(self, ids, num):
        """Greedy chain, as the target's ids."""
        return self.target_ids()[self.laws(ids, num).argmax(-1)].tolist()
