"""EAGLE by its formulas: a pass over the whole sequence for every path, without cache or masks.

Nothing here is shared with the methods' code. faults: mistakes that load without complaint and cost
acceptance only; a reference that makes one must disagree with the drafts.

    order     feature before embedding            norm      EAGLE: an input norm; EAGLE-3: the
    features  another state of the target                   residual is the normed feature
    shift     row i reads token i, not i + 1      normed    EAGLE-3: the normed output is recycled
    position  tree rows sit at their tokens'      ids       EAGLE-3: d2t holds ids, not offsets
    or a field of the config, which is overlooked
"""

import copy
from types import SimpleNamespace

import torch

from model.common.heads.checkpoint import read_config, read_tensors


def rms_norm(rows, weight=1.0, eps=1e-6):
    """Computed in float32, cast back, then weighted."""
    wide = rows.float()
    return weight * (wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(rows.dtype)


def rotated(rows, positions, base):
    """RoPE of rows [m, heads, D] in the half-split layout."""
    half = rows.shape[-1] // 2
    angles = positions.float()[:, None] / base ** (torch.arange(half).float() / half)
    cos, sin = (part.to(rows.dtype).unsqueeze(1) for part in (angles.cos(), angles.sin()))
    left, right = rows[..., :half], rows[..., half:]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class SlowHead:
    """A head's directory and a plain target. begin(ids), then after(path) for any path of tokens.

    after(path) -> (output [H], logits [V_d]) of the row that reads the path's last token.
    layers: of the target whose inputs EAGLE-3 reads, None = the usual three
    """

    layer = 0  # whose tensors attention() and mlp() read

    def __init__(self, folder, model, version=1, fault=None, layers=None):
        config = read_config(folder)
        self.config = config | (config.get("transformer_layer_config") or {})
        self.config |= config.get("eagle_config") or {}
        self.config.pop(fault, None)
        self.t = {}
        for name, tensor in read_tensors(f"{folder}/pytorch_model.bin").items():
            name = name.removeprefix("model.").replace("midlayer", "layers.0")
            self.t[name] = tensor.to(model.dtype) if tensor.is_floating_point() else tensor
        self.version, self.fault = version, fault
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")
        self.seen = {}
        inner, num = self.model.model, len(self.model.model.layers)
        self.layers = layers or (2, num // 2, num - 3)
        for number, layer in enumerate(inner.layers):
            layer.register_forward_pre_hook(self._keep(number))
        inner.norm.register_forward_pre_hook(self._keep("before norm"))
        inner.norm.register_forward_hook(lambda *a: self.seen.update(last=a[2][0]))

    def _keep(self, name):
        return lambda module, inputs: self.seen.update({name: inputs[0][0]})

    def states(self, ids):
        """The target's vectors [n, ..] that rows read, by hooks of a plain forward."""
        logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        if self.version == 3:
            shift = int(self.fault == "features")
            return self.fused([self.seen[layer + shift] for layer in self.layers])
        assert torch.equal(self.model.lm_head(self.seen["last"]), logits)
        return self.seen["before norm" if self.fault == "features" else "last"]

    def fused(self, states):
        """EAGLE-3's features [n, H] of the target's states, a list of [n, H_t]."""
        if self.config.get("fc_norm"):
            norms = [self.t[f"fc_norm.{place}.weight"] for place in range(len(states))]
            states = [rms_norm(one, weight) for one, weight in zip(states, norms)]
        fused = torch.cat(states, -1)
        if self.config.get("norm_before_fc"):
            fused = rms_norm(fused, self.t["input_norm.weight"])
        return fused @ self.t["fc.weight"].T

    def begin(self, ids):
        """Committed ids, the root last."""
        self.ids, self.real, self.known = list(ids), self.states(ids[:-1]), {}

    @torch.inference_mode()
    def after(self, path=()):
        if path not in self.known:
            drawn = [self.after(path[:end])[0] for end in range(len(path))]
            features = torch.stack([*self.real, *drawn])
            every = [*self.ids, *path]
            tokens = every[:-1] if self.fault == "shift" else every[1:]
            positions = torch.arange(len(tokens))
            if self.fault == "position":
                positions[len(self.real) :] += 1
            self.known[path] = self.last_row(torch.tensor(tokens), features, positions)
        return self.known[path]

    def last_row(self, tokens, features, positions):
        """(output, logits) of the last of a chain of rows."""
        table = self.t.get("embed_tokens.weight")
        own_width = self.config["hidden_size"] != self.model.config.hidden_size
        if table is None or not (own_width or self.config.get("embed_requires_grad")):
            table = self.model.model.embed_tokens.weight
        embedded = table[tokens]
        out = self.eagle3(embedded, features, positions)[-1] if self.version == 3 else None
        if self.version == 3:
            normed = rms_norm(out, self.t["norm.weight"])
            logits = self.t.get("lm_head.weight", self.model.lm_head.weight) @ normed
            recycled = self.fault == "normed" or self.config.get("norm_output")
            return (normed if recycled else out), logits
        out = self.eagle(embedded, features, positions)[-1]
        return out, self.model.lm_head.weight @ out

    def eagle(self, embedded, features, positions):
        pair = [features, embedded] if self.fault == "order" else [embedded, features]
        rows = torch.cat(pair, -1) @ self.t["fc.weight"].T + self.t.get("fc.bias", 0)
        read = rms_norm(rows) if self.fault == "norm" else rows
        return self.mlp(rows + self.attention(read, positions))

    def eagle3(self, embedded, features, positions):
        own = rms_norm(features, self.t["layers.0.hidden_norm.weight"])
        pair = [rms_norm(embedded, self.t["layers.0.input_layernorm.weight"]), own]
        pair = pair[::-1] if self.fault == "order" else pair
        attended = self.attention(torch.cat(pair, -1), positions)
        normed = self.fault == "norm" or self.config.get("norm_before_residual")
        return self.mlp((own if normed else features) + attended)

    def attention(self, rows, positions):
        query, key, value = (self.linear(rows, f"self_attn.{name}_proj") for name in "qkv")
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        dim = query.shape[1] // heads
        query, key, value = (part.view(len(rows), -1, dim) for part in (query, key, value))
        base = self.config.get("rope_theta", 10000.0)
        query, key = rotated(query, positions, base), rotated(key, positions, base)
        key, value = (part.repeat_interleave(heads // groups, 1) for part in (key, value))
        scores = torch.einsum("ihd,jhd->hij", query, key) / dim**0.5
        place = torch.arange(len(rows))
        distance = place.unsqueeze(1) - place
        hidden = distance < 0
        if "sliding_attention" in (self.config.get("layer_types") or ()):
            hidden |= distance >= self.config["sliding_window"]
        weight = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out = torch.einsum("hij,jhd->ihd", weight, value).flatten(1)
        return self.linear(out, "self_attn.o_proj")

    def linear(self, rows, name):
        """A layer's matrix, with its bias where the file has one."""
        out = rows @ self.t[f"layers.{self.layer}.{name}.weight"].T
        return out + self.t.get(f"layers.{self.layer}.{name}.bias", 0)

    def mlp(self, rows):
        norm = self.t[f"layers.{self.layer}.post_attention_layernorm.weight"]
        normed = rms_norm(rows, norm)
        hidden = self.linear(normed, "mlp.gate_proj")
        hidden = hidden * hidden.sigmoid() * self.linear(normed, "mlp.up_proj")
        return rows + self.linear(hidden, "mlp.down_proj")

    def best(self, path, num):
        """[(target id, log probability)] of the best continuations, best first."""
        logp = self.after(path)[1].float().log_softmax(-1)
        ids = logp.argsort(descending=True, stable=True)[:num].tolist()
        shift = self.t["d2t"].tolist() if "d2t" in self.t else [0] * len(logp)
        return [(shift[i] + (0 if self.fault == "ids" else i), logp[i].item()) for i in ids]


def static_paths(best, tree):
    """Token paths of a static tree's nodes; tree: paths of ranks, parents first."""
    tokens = {(): ()}
    for path in tree:
        above = tokens[path[:-1]]
        tokens[path] = (*above, best(above, 1 + path[-1])[path[-1]][0])
    return [tokens[path] for path in tree]


def whole_pool(best, depth, top_k):
    """[(token path, score)] of all nodes that a dynamic tree considers, in their order."""
    pool = [((token,), score) for token, score in best((), top_k)]
    frontier = pool[:]
    for _ in range(depth):
        children = [
            ((*path, token), score + logp)
            for path, score in frontier
            for token, logp in best(path, top_k)
        ]
        pool += children
        frontier = sorted(children, key=lambda node: -node[1])[:top_k]
    return pool


def dynamic_paths(best, num_nodes, depth, top_k):
    """Token paths of the nodes that a dynamic tree keeps."""
    pool = whole_pool(best, depth, top_k)
    order = sorted(range(len(pool)), key=lambda node: (-pool[node][1], node))
    return [pool[node][0] for node in sorted(order[:num_nodes])]


def differing(recording, slow, draft_paths):
    """Recorded drafts, of how many, that a slow reference does not draft; draft_paths(best)."""
    wrong = 0
    for one in recording.drafts:
        slow.begin(one.ids)
        wrong += one.paths != draft_paths(slow.best)
    return wrong, len(recording.drafts)


class ScriptedHead:
    """Says guess(slot, place, path) -> logits [V]; a row's output packs the tokens of its path.

    place: answer tokens that are committed; path: the draft's tokens behind them.
    """

    device, dtype, needs = torch.device("cpu"), torch.float64, ("last",)
    config = SimpleNamespace(hidden_size=1)

    def __init__(self, guess, vocab_size):
        self.guess, self.base = guess, vocab_size + 1

    @property
    def cache(self):
        """Itself: what stands in the cache is the place."""
        return self

    def reserve(self, num_slots, capacity):
        self.place = torch.zeros(num_slots, dtype=torch.long)

    def advance(self, count):
        self.place += count

    def clear(self, slots):
        self.place[slots] = 0

    def features(self, hidden):
        return hidden["last"].new_zeros(*hidden["last"].shape[:2], 1, dtype=torch.float64)

    def target_ids(self, ids):
        return ids

    def read_prompt(self, slots, inputs, lengths):
        self.place[slots] = 1
        return torch.zeros(len(slots), 1, dtype=torch.float64)

    def read(self, inputs, longest, offset=0, ancestors=None, depths=None):
        tokens, features = inputs
        if ancestors is None:  # committed rows, behind each of which a path begins
            return torch.zeros(*tokens.shape, 1, dtype=torch.float64)
        return features * self.base + tokens.unsqueeze(-1) + 1

    def logits(self, features):
        said = [
            [self.guess(slot, place, self._path(code)) for code in line]
            for slot, (line, place) in enumerate(
                zip(features.squeeze(-1).long().tolist(), self.place.tolist())
            )
        ]
        return torch.tensor(said)

    def _path(self, code):
        path = []
        while code:
            path.insert(0, code % self.base - 1)
            code //= self.base
        return tuple(path)


def teller(known, vocab_size, right=True):
    """guess() of a head that ranks the known answers' next token first, or last."""

    def guess(slot, place, path):
        ahead = known[slot][place : place + len(path) + 1]
        logits = [0.0] * vocab_size
        if len(ahead) > len(path):
            logits[ahead[len(path)]] = 9.0 if right and tuple(ahead[:-1]) == path else -9.0
        return logits

    return guess
