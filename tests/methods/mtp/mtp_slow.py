"""MTP heads by their formulas: a pass over the whole text for every draft, without our cache.

The head's layer is transformers' own, called with its own attention. faults: mistakes that load
without complaint and cost acceptance only; a reference that makes one must disagree with drafts.

order     the linear layer reads its two inputs the other way round
shift     row i reads token i, not i + 1
target    the target's state before its final norm, where the family wants the one behind it
chain     the head's output before its norm is drafted on
centred   norm weights are taken as they are stored, where the family's are distances from 1
"""

import copy

import torch
from safetensors.torch import load_file

from model.mtp.head import layer_config

FAULTS = ("order", "shift", "target", "chain")
ZERO_CENTRED = ("qwen3_next", "qwen3_5")


class SlowMtp:
    """A head in a folder beside a plain target of transformers. begin(ids), then best(path)."""

    def __init__(self, folder, model, layout, fault=None):
        self.model, self.fault = copy.deepcopy(model), fault
        self.model.set_attn_implementation("eager")
        self.decoder = self.model.get_decoder()
        self.config = self.model.config.get_text_config()
        number = self.config.num_hidden_layers
        prefix = {"deepseek": f"model.layers.{number}.", "qwen": "mtp."}.get(
            layout, "mtp_layers.0." if layout == "speculators" else "model.mtp_layers.0."
        )
        self.names = {
            "deepseek": ("enorm", "hnorm", "shared_head.norm", "eh_proj"),
            "qwen": ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm", "fc"),
        }.get(layout, ("token_layernorm", "hidden_layernorm", "final_layernorm", "input_proj"))
        self.state_first = (layout == "mimo") != (fault == "order")
        self.before = (layout == "mimo") != (fault == "target")
        stored = load_file(f"{folder}/model.safetensors")
        self.t = {
            name[len(prefix) :]: tensor.to(model.dtype)
            for name, tensor in stored.items()
            if name.startswith(prefix)
        }
        self.layer = self._layer("layers.0." if layout == "qwen" else "")
        self.seen = {}
        self.decoder.norm.register_forward_hook(
            lambda module, inputs, out: self.seen.update(before=inputs[0][0], behind=out[0])
        )

    def _layer(self, prefix):
        """The layer with the file's tensors, experts side by side."""
        config = layer_config(self.config)
        config._attn_implementation = "eager"
        layer = type(self.decoder.layers[-1])(config, 0).to(self.model.dtype)
        state = {}
        for name in layer.state_dict():
            if name.endswith("experts.gate_up_proj") and prefix + name not in self.t:
                state[name] = self._experts(prefix, ("gate", "up"))
            elif name.endswith("experts.down_proj") and prefix + name not in self.t:
                state[name] = self._experts(prefix, ("down",))
            else:
                state[name] = self.t[prefix + name]
        layer.load_state_dict(state)
        return layer.eval()

    def _experts(self, prefix, kinds):
        number, found = 0, []
        while f"{prefix}mlp.experts.{number}.down_proj.weight" in self.t:
            part = f"{prefix}mlp.experts.{number}"
            found.append(torch.cat([self.t[f"{part}.{kind}_proj.weight"] for kind in kinds]))
            number += 1
        return torch.stack(found)

    def norm(self, rows, name):
        weight = self.t[f"{name}.weight"]
        if self.config.model_type.startswith(ZERO_CENTRED) and self.fault != "centred":
            weight = weight + 1
        wide = rows.float()  # as transformers' norms do, whatever the model's precision
        wide = wide * (wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).rsqrt()
        return weight * wide.to(rows.dtype)

    @torch.inference_mode()
    def begin(self, ids):
        """Committed ids, the root last."""
        self.ids, self.known = list(ids), {}
        logits = self.model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        assert torch.equal(self.model.lm_head(self.seen["behind"]), logits)
        self.real = self.seen["before" if self.before else "behind"]

    @torch.inference_mode()
    def after(self, path=()):
        """(state that is drafted on [H], logits [V]) of the row that reads a path's last token."""
        if path in self.known:
            return self.known[path]
        drawn = [self.after(path[:end])[0] for end in range(len(path))]
        states = torch.stack([*self.real, *drawn])
        every = [*self.ids, *path]
        tokens = torch.tensor(every[:-1] if self.fault == "shift" else every[1:])
        embedding, state, out, linear = self.names
        pair = [
            self.norm(self.model.get_input_embeddings()(tokens), embedding),
            self.norm(states, state),
        ]
        pair = pair[::-1] if self.state_first else pair
        rows = (torch.cat(pair, -1) @ self.t[f"{linear}.weight"].T).unsqueeze(0)
        positions = torch.arange(len(tokens)).unsqueeze(0)
        rotary = self.decoder.rotary_emb(rows, positions)
        length = len(tokens)
        mask = torch.full((1, 1, length, length), float("-inf"), dtype=rows.dtype).triu(1)
        last = self.layer(rows, attention_mask=mask, position_embeddings=rotary)[0, -1]
        normed = self.norm(last, out)
        chained = last if self.fault == "chain" else normed
        self.known[path] = chained, self.model.lm_head(normed)
        return self.known[path]

    def chain(self, num):
        """The greedy draft of `num` tokens."""
        path = ()
        for _ in range(num):
            path += (int(self.after(path)[1].argmax()),)
        return list(path)
