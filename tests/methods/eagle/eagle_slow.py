"""EAGLE by its formulas: a pass over the whole sequence for every path, without cache or masks.

Nothing here is shared with the methods' code. faults: mistakes that load without complaint and cost
acceptance only; a reference that makes one must disagree with the drafts.

    order     feature before embedding            norm      EAGLE: an input norm; EAGLE-3: the
    features  another state of the target                   residual is the normed feature
    shift     row i reads token i, not i + 1      normed    EAGLE-3: the normed output is recycled
    position  tree rows sit at their tokens'      ids       EAGLE-3: d2t holds ids, not offsets
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
    """

    def __init__(self, folder, model, version=1, fault=None):
        self.config = read_config(folder)
        tensors = read_tensors(f"{folder}/pytorch_model.bin")
        self.t = {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in tensors.items()}
        self.layer = "midlayer" if version == 3 else "layers.0"
        self.version, self.fault = version, fault
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")
        self.seen = {}
        inner = self.model.model
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
            num = len(self.model.model.layers)
            shift = int(self.fault == "features")
            fused = [self.seen[layer + shift] for layer in (2, num // 2, num - 3)]
            return torch.cat(fused, -1) @ self.t["fc.weight"].T
        assert torch.equal(self.model.lm_head(self.seen["last"]), logits)
        return self.seen["before norm" if self.fault == "features" else "last"]

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
        if table is None or self.config["hidden_size"] == self.model.config.hidden_size:
            table = self.model.model.embed_tokens.weight
        embedded = table[tokens]
        out = self.eagle3(embedded, features, positions)[-1] if self.version == 3 else None
        if self.version == 3:
            normed = rms_norm(out, self.t["norm.weight"])
            logits = self.t["lm_head.weight"] @ normed
            return (normed if self.fault == "normed" else out), logits
        out = self.eagle(embedded, features, positions)[-1]
        return out, self.model.lm_head.weight @ out

    def eagle(self, embedded, features, positions):
        pair = [features, embedded] if self.fault == "order" else [embedded, features]
        rows = torch.cat(pair, -1) @ self.t["fc.weight"].T + self.t.get("fc.bias", 0)
        read = rms_norm(rows) if self.fault == "norm" else rows
        return self.mlp(rows + self.attention(read, positions))

    def eagle3(self, embedded, features, positions):
        own = rms_norm(features, self.t["midlayer.hidden_norm.weight"])
        pair = [rms_norm(embedded, self.t["midlayer.input_layernorm.weight"]), own]
        pair = pair[::-1] if self.fault == "order" else pair
        attended = self.attention(torch.cat(pair, -1), positions)
        return self.mlp((own if self.fault == "norm" else features) + attended)

    def attention(self, rows, positions):
        weights = {name: self.t[f"{self.layer}.self_attn.{name}_proj.weight"] for name in "qkvo"}
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        dim = len(weights["q"]) // heads
        query, key, value = ((rows @ weights[name].T).view(len(rows), -1, dim) for name in "qkv")
        base = self.config.get("rope_theta", 10000.0)
        query, key = rotated(query, positions, base), rotated(key, positions, base)
        key, value = (part.repeat_interleave(heads // groups, 1) for part in (key, value))
        scores = torch.einsum("ihd,jhd->hij", query, key) / dim**0.5
        later = torch.ones(len(rows), len(rows)).triu(1).bool()
        weight = scores.masked_fill(later, float("-inf")).softmax(-1)
        return torch.einsum("hij,jhd->ihd", weight, value).flatten(1) @ weights["o"].T

    def mlp(self, rows):
        normed = rms_norm(rows, self.t[f"{self.layer}.post_attention_layernorm.weight"])
        gate, up, down = (
            self.t[f"{self.layer}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down")
        )
        hidden = normed @ gate.T
        return rows + (hidden * hidden.sigmoid() * (normed @ up.T)) @ down.T

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
