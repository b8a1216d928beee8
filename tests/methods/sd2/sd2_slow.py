"""Sorted drafts by their definition: every distribution from a plain forward without a cache."""

import torch
from conftest import make_model
from draft_models import plain

from model.common.target.model import Target
from model.sd2.chain import SortedChainDrafter
from model.sd2.exits import SortedDraft
from model.sd2.tree import SortedTreeDrafter

EXITS = [2, 4, 6]
SHAPE = {"num_hidden_layers": 6, "hidden_size": 32, "intermediate_size": 48}
SHARP = 28.0  # factor on the head's weights: probabilities from 0.1 to 1


def draft_model(seed=0, **shape):
    """A small Llama of six layers whose exits differ and are sure of some tokens."""
    model = make_model(seed=seed, **{**SHAPE, **shape})
    with torch.no_grad():
        model.lm_head.weight.mul_(SHARP)
    return model


def make_target():
    """A target that says what the draft's last exit says, until it is changed a little."""
    model = draft_model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.003)
    return Target(model)


def make_draft(thresholds, exits=EXITS, kind=SortedDraft, seed=0):
    return kind(Target(draft_model(seed)), list(exits), list(thresholds))


def make_chain(thresholds, target, schedule="heuristic", num_draft=5, guess="sample", **more):
    return SortedChainDrafter(make_draft(thresholds, **more), target, schedule, num_draft, guess)


def make_tree(thresholds, num_nodes=12, depth=3, top_k=3, num_ids=97, **more):
    return SortedTreeDrafter(make_draft(thresholds, **more), num_ids, num_nodes, depth, top_k)


class Slow:
    """The draft model as a function of ids; near: how close a decision was, at the closest."""

    def __init__(self, thresholds, exits=EXITS, seed=0):
        self.model, self.exits, self.thresholds = plain(draft_model(seed)), exits, thresholds
        self.near = 1.0

    @torch.inference_mode()
    def all_logits(self, ids):
        """Logits [V] of every exit after ids."""
        states, _ = self.layer_states(ids)
        norm, head = self.model.model.norm, self.model.lm_head
        return [head(norm(states[layers - 1][-1])) for layers in self.exits]

    def leave(self, prefixes):
        """(exit's number, its logits after every prefix): one exit for all."""
        rows = [self.all_logits(ids) for ids in prefixes]
        for number, threshold in enumerate(self.thresholds):
            best = max(float(row[number].softmax(-1).max()) for row in rows)
            if number + 1 < len(self.exits):
                self.near = min(self.near, abs(best - threshold))
            if best > threshold or number + 1 == len(self.exits):
                return number, [row[number] for row in rows]

    def chain(self, ids, length):
        """(tokens, exits) of a greedy chain after ids."""
        tokens, left = [], []
        for _ in range(length):
            number, (logits,) = self.leave([ids + tokens])
            tokens.append(int(logits.argmax()))
            left.append(number)
        return tokens, left

    def tree(self, ids, num_nodes, depth, top_k):
        """({path: score} of the best nodes, exits of the passes)."""
        number, (logits,) = self.leave([ids])
        found, left = {}, [number]
        level = self.children((), 0.0, logits, top_k)
        found |= level
        for _ in range(depth):
            frontier = sorted(level, key=lambda path: -level[path])[:top_k]
            number, laws = self.leave([ids + list(path) for path in frontier])
            left.append(number)
            level = {}
            for path, law in zip(frontier, laws):
                level |= self.children(path, found[path], law, top_k)
            found |= level
        best = sorted(found, key=lambda path: -found[path])[:num_nodes]
        return {path: found[path] for path in best}, left

    @staticmethod
    def children(path, score, logits, top_k):
        best = logits.log_softmax(-1).topk(top_k)
        pairs = zip(best.indices.tolist(), best.values.tolist())
        return {(*path, token): score + logp for token, logp in pairs}

    @torch.inference_mode()
    def layer_states(self, ids):
        """(hidden states after every layer [layers, T, H], keys and values of every layer)."""
        from transformers import DynamicCache

        cache = DynamicCache()
        states, kept = self.model.model.embed_tokens(torch.tensor([ids])), []
        decoder, length = self.model.model, len(ids)
        mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
        rotary = decoder.rotary_emb(states, position_ids=torch.arange(length).unsqueeze(0))
        for layer in decoder.layers:
            states = layer(
                states, attention_mask=mask, position_embeddings=rotary, past_key_values=cache
            )
            kept.append(states[0])
        layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        return kept, layers


def check_columns(draft, slot, ids, slow):
    """Everything a block has read of a slot, and what is parked, equals a full recompute."""
    states, layers = slow.layer_states(ids)
    first = 0
    for block, last in enumerate(draft.exits):
        done = draft.done[block][slot]
        assert done <= (draft.done[block - 1][slot] if block else len(ids) - 2)
        for layer in range(first, last):
            kv = draft.decoder.layers[layer].self_attn.kv
            for found, wanted in zip(kv, layers[layer]):
                same = torch.allclose(found[slot, :, :done], wanted[:, :done], atol=1e-4)
                assert same, (block, layer, done)
        if block:
            waiting = slice(done, draft.done[block - 1][slot])
            found = draft.parked[block - 1][slot, waiting]
            torch.testing.assert_close(found, states[first - 1][waiting], atol=1e-4, rtol=1e-4)
        first = last
