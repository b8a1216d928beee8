"""Block drafters by their definition: one block behind one text, without a cache, row by row."""

import heapq
import json
import math
from pathlib import Path

import torch

from model.common.heads.checkpoint import read_tensors

# what a drafter can get wrong and still draft; the tests show that each is seen
FAULTS = ("layer", "order", "leak", "block kept", "causal", "normed twice", "position")


class SlowBlock:
    """A head's folder (flat config) and its target's transformers model, in float64.

    fault  one of FAULTS, done here
    """

    def __init__(self, folder, model, fault=None):
        self.model, self.fault = model, fault
        self.config = json.loads(Path(folder, "config.json").read_text())
        tensors = read_tensors(f"{folder}/model.safetensors")
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        table = model.get_input_embeddings().weight.double()
        self.table = self.tensors.get("embed_tokens.weight", table)
        output = model.get_output_embeddings().weight.double()
        self.output = self.tensors.get("lm_head.weight", output)
        self.kept = []  # earlier blocks' keys and values, where a fault keeps them

    def linear(self, name, row):
        out = self.tensors[f"{name}.weight"] @ row
        return out + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else out

    def norm(self, name, row):
        root = (row.square().mean() + self.config["rms_norm_eps"]).sqrt()
        return row / root * self.tensors[f"{name}.weight"]

    def rotated(self, head, position):
        """RoPE of one head [D]: pairs i and i + D / 2."""
        half = len(head) // 2
        rates = self.config["rope_theta"] ** (-torch.arange(half).double() / half)
        cos, sin = (position * rates).cos(), (position * rates).sin()
        first, second = head[:half], head[half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin])

    def heads(self, layer, part, row, position):
        """Heads [heads, D] of a projection of a row; queries and keys normed and rotated."""
        attention = f"layers.{layer}.self_attn"
        split = self.linear(f"{attention}.{part}_proj", row).view(-1, self.config["head_dim"])
        if part == "v":
            return split
        normed = [self.norm(f"{attention}.{part}_norm", head) for head in split]
        return torch.stack([self.rotated(head, position) for head in normed])

    def context(self, ids):
        """(rows [n, H], their positions) of the tokens that the target has read."""
        inputs = torch.tensor([ids])
        hidden = self.model(inputs, output_hidden_states=True, use_cache=False).hidden_states
        known = len(ids) if self.fault == "leak" else len(ids) - 1
        layers = self.config["target_layer_ids"]
        layers = layers[::-1] if self.fault == "order" else layers
        shift = 0 if self.fault == "layer" else 1
        rows = []
        for place in range(known):
            states = torch.cat([hidden[layer + shift][0, place] for layer in layers]).double()
            row = self.norm("hidden_norm", self.linear("fc", states))
            rows.append(self.norm("hidden_norm", row) if self.fault == "normed twice" else row)
        return rows, list(range(known))

    def sees(self, layer, query, key, inside):
        """Whether a block's row at a position reads a position of the text or (inside) block."""
        kinds = self.config.get("layer_types") or ["full_attention"] * (layer + 1)
        sliding = kinds[layer] == "sliding_attention"
        causal = self.config.get("is_causal")
        causal = sliding if causal is None else causal
        if inside and (causal or self.fault == "causal") and key > query:
            return False
        return not sliding or query - key < self.config["sliding_window"]

    def attention(self, layer, rows, positions, context, places):
        """What a layer's attention gives the block's rows."""
        known = [
            (self.heads(layer, "k", row, at), self.heads(layer, "v", row, at), at, False)
            for row, at in zip(context, places)
        ]
        own = [
            (self.heads(layer, "k", row, at), self.heads(layer, "v", row, at), at, True)
            for row, at in zip(rows, positions)
        ]
        old = [pair for at, pair in self.kept if at == layer] if self.kept else []
        if self.fault == "block kept":
            self.kept += [(layer, (key, value, at, False)) for key, value, at, _ in own]
        out = []
        for row, at in zip(rows, positions):
            queries, parts = self.heads(layer, "q", row, at), []
            seen = [one for one in known + old + own if self.sees(layer, at, one[2], one[3])]
            for head, query in enumerate(queries):
                group = head // (len(queries) // len(own[0][0]))
                scores = torch.stack([query @ one[0][group] for one in seen])
                weights = (scores / math.sqrt(len(query))).softmax(0)
                parts.append(sum(w * one[1][group] for w, one in zip(weights, seen)))
            out.append(self.linear(f"layers.{layer}.self_attn.o_proj", torch.cat(parts)))
        return out

    def around(self, name, rows, sublayer):
        """A sublayer of normed rows inside DFlash2's convolutions, if the layer has them."""
        if f"{name}.base_kernel" not in self.tensors:
            return sublayer(rows)
        base, group = self.tensors[f"{name}.base_kernel"], self.config["conv_group_size"]
        taps, width = base.shape[1:]
        own = [self.linear(f"{name}.kernel_projection", row) for row in rows]
        own = [row.view(2, taps, width // group).repeat_interleave(group, 2) for row in own]

        def mixed(rows, side):
            return [
                sum(
                    (base[side, tap] + own[at][side, tap]) * rows[at - tap]
                    for tap in range(taps)
                    if at >= tap
                )
                for at in range(len(rows))
            ]

        return mixed(sublayer(mixed(rows, 0)), 1)

    def mlp(self, layer, rows):
        part = f"layers.{layer}.mlp"
        inner = [
            torch.nn.functional.silu(self.linear(f"{part}.gate_proj", row))
            * self.linear(f"{part}.up_proj", row)
            for row in rows
        ]
        return [self.linear(f"{part}.down_proj", row) for row in inner]

    @torch.no_grad()
    def states(self, ids):
        """Final states [n, H] of the rows that draft behind ids, the root last."""
        size, context = self.config["block_size"], self.context(ids)
        tokens = [ids[-1]] + [self.config["mask_token_id"]] * (size - 1)
        rows = [self.table[token] for token in tokens]
        first = len(ids) - 1 + (self.fault == "position")
        positions = list(range(first, first + size))
        for layer in range(self.config["num_hidden_layers"]):
            name = f"layers.{layer}"
            normed = [self.norm(f"{name}.input_layernorm", row) for row in rows]
            new = self.around(
                f"{name}.attention_conv",
                normed,
                lambda own, layer=layer: self.attention(layer, own, positions, *context),
            )
            rows = [row + more for row, more in zip(rows, new)]
            normed = [self.norm(f"{name}.post_attention_layernorm", row) for row in rows]
            new = self.around(
                f"{name}.mlp_conv", normed, lambda own, layer=layer: self.mlp(layer, own)
            )
            rows = [row + more for row, more in zip(rows, new)]
        deepspec = "Qwen3DSparkModel" in self.config.get("architectures", ())
        rows = rows if self.config.get("sample_from_anchor", deepspec) else rows[1:]
        return torch.stack([self.norm("norm", row) for row in rows])

    def logits(self, states):
        rows = states @ self.output.T * self.config.get("output_multiplier", 1)
        cap = self.config.get("final_logit_softcapping")
        return rows if cap is None else cap * (rows / cap).tanh()

    def target_id(self, place):
        """An output's id in the target's vocabulary."""
        return place + int(self.tensors["d2t"][place]) if "d2t" in self.tensors else place

    def chain(self, ids):
        """Greedy tokens, with the selector's walk where there is one."""
        states = self.states(ids)
        logits, selector = self.logits(states), "candidate_selector."
        if f"{selector}successor_codebook" not in self.tensors:
            return [self.target_id(int(row.argmax())) for row in logits]
        before, tokens = ids[-1], []
        for state, row in zip(states, logits):
            edge = self.linear(f"{selector}hidden_projection", state)
            edge = edge * self.tensors[f"{selector}predecessor_codebook"][before]
            best = row.argsort(descending=True)[: self.config["selector_top_k"]].tolist()
            table = self.tensors[f"{selector}successor_codebook"]
            before = max(best, key=lambda one: float(row[one] + table[one] @ edge))
            tokens.append(before)
        return tokens

    def tree(self, ids, num):
        """Paths of DDTree's nodes."""
        logp = self.logits(self.states(ids)).log_softmax(-1)
        paths, _ = best_first(logp.tolist(), num)
        return {tuple(map(self.target_id, path)) for path in paths}


def best_first(logp, num):
    """(paths, scores) of the num likeliest prefixes of slots' log probabilities, best first."""
    orders = [sorted(range(len(slot)), key=lambda token: -slot[token]) for slot in logp]

    def entry(ranks):
        score = sum(slot[order[r]] for slot, order, r in zip(logp, orders, ranks))
        return -score, ranks

    heap, paths, scores = [entry((0,))], [], []
    while heap and len(paths) < num:
        score, ranks = heapq.heappop(heap)
        paths.append(tuple(order[r] for order, r in zip(orders, ranks)))
        scores.append(-score)
        if ranks[-1] + 1 < len(orders[len(ranks) - 1]):
            heapq.heappush(heap, entry((*ranks[:-1], ranks[-1] + 1)))
        if len(ranks) < len(logp):
            heapq.heappush(heap, entry((*ranks, 0)))
    return paths, scores
