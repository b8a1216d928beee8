"""Targets that keep transformers' own cache: chains only, one slot, nothing compiled.

For models whose attention cannot be given our cache (ALiBi from the cache's index, an attention of
their own, recurrent states) and for encoder-decoder models. A step reads root and draft behind the
cache and then takes the refused rows out again: where every layer is a plain DynamicLayer by
crop(), elsewhere by a copy made before the step, behind which the accepted rows are read again.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import torch
from torch import Tensor

from model.common.contract.drafter import Draft, Drafter, Needs
from model.common.errors import BadInput, Unsupported
from model.common.loop.ranking import top_ids
from model.common.target.model import Prefilled, Target
from model.common.target.placement import output_device
from model.common.target.runtime import Runtime


class OwnCache:
    """transformers' cache of one sequence, by the names that the loop calls our cache by.

    past    the model's cache, None = empty
    ids     [length] committed tokens that it holds, and behind them the rows read since
    length  committed tokens, a host int
    """

    num_slots, capacity = 1, None

    def __init__(self, read):
        self._read = read  # (ids, past, hidden=False) -> the forward's output
        self.clear()

    def clear(self, slots: list[int] | None = None) -> None:
        """Empty it."""
        self.past, self.saved, self.length, self.ids = None, None, 0, []

    def begin(self, past, ids: list[int]) -> None:
        """A prompt's ids have been read into `past`."""
        self.past, self.saved, self.length, self.ids = past, None, len(ids), list(ids)

    def read(self, ids: list[int], stays: bool, hidden: bool):
        """The forward's output for rows behind what is there; stays: none will be refused."""
        if not stays and self.saved is None and not self._croppable():
            self.saved = len(self.ids), copy.deepcopy(self.past)
        output = self._read(ids, self.past, hidden)
        self.past = output_cache(output)
        self.ids += ids
        return output

    def keep(self, path: Tensor | None, count: Tensor) -> None:
        """Keep `count` [1] rows of a chain, and forget the others."""
        self.rewind(self.length + count)

    def advance(self, count) -> None:
        """The next rows stay until the next rewind: an int or [1]."""
        self.length += int(count)

    def rewind(self, lengths: Tensor, slots: list[int] | None = None) -> None:
        """Go back to a committed length [1]."""
        self.length = int(lengths[0])
        refused = len(self.ids) - self.length
        if refused > 0 and self._croppable():
            _self_attention(self.past).crop(-refused)
        elif refused > 0:
            read, self.past = self.saved or (0, None)
            if read > self.length:
                read, self.past = 0, None
            if read < self.length:
                self.past = output_cache(self._read(self.ids[read : self.length], self.past))
        self.saved = None
        del self.ids[self.length :]

    def _croppable(self) -> bool:
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = _self_attention(self.past)
        if type(cache) is not DynamicCache:
            return False
        return all(type(layer) is DynamicLayer for layer in cache.layers)


def _self_attention(past):
    """The decoder's own cache of an encoder-decoder model's pair, else the cache itself."""
    return getattr(past, "self_attention_cache", past)


CACHES = ("past_key_values", "cache_params")  # what transformers calls a cache


def output_cache(output):
    """The cache in a forward's output."""
    for name in CACHES:
        if output.get(name) is not None:
            return output[name]
    raise Unsupported("the target's forward returns no cache; it is not supported")


class OwnCacheTarget(Target):
    """Target whose model is called as transformers calls it. See the module."""

    reads_trees = False

    def __init__(self, model):
        self._describe(model, None)
        self.device, self.dtype, self.layers, self.kinds = output_device(model), model.dtype, [], {}
        self.runtime = Runtime(self.device)
        parameters = inspect.signature(model.forward).parameters
        self.cache_name = next((name for name in CACHES if name in parameters), None)
        if self.cache_name is None:
            raise self.unsupported("its forward takes no cache")
        self.keeps_logits = "logits_to_keep" in parameters  # else a prompt's are all made
        self.cache = OwnCache(self._read)

    def unsupported(self, reason: str) -> Unsupported:
        """The refusal of this model."""
        return Unsupported(f"model type {self.config.model_type}: {reason}; it is not supported")

    def refuses(self, drafter: Drafter, num_slots: int) -> str | None:
        name = f"model type {self.config.model_type} keeps a cache of its own"
        if num_slots > 1:
            return f"{name}, for one question at a time: --batch-size must be 1"
        if drafter.max_depth is not None:
            return f"{name} and can only read chains, not this method's trees"
        return super().refuses(drafter, num_slots)

    def reserve(self, num_slots, capacity):
        if num_slots > 1:
            raise BadInput(self.refuses(Drafter(), num_slots))
        self.cache.clear()

    def make_room(self, needed):
        """It grows by itself."""

    def padded(self, draft, drafter):
        """The draft, cut where the context ends: rows behind that cannot be committed, and a table
        of positions has none for them."""
        draft = super().padded(draft, drafter)
        if self.context is None:
            return draft
        room = max(self.context - self._num_read() - 1, 0)
        probs = None if draft.probs is None else draft.probs[:, :room]
        return replace(draft, tokens=draft.tokens[:, :room], probs=probs)

    def _num_read(self) -> int:
        """Tokens that the decoder has read."""
        return len(self.cache.ids)

    @torch.inference_mode()
    def prefill(self, slots, ids, lengths, needs: Needs) -> Prefilled:
        prompt = ids[:, : lengths[0]]
        if self.rope is not None:
            self.rope.start(slots, lengths)
            self.rope.choose(None)
        output = self._read_prompt(prompt, needs)
        self.cache.begin(output_cache(output), prompt[0].tolist())
        topk = top_ids(output.logits, needs.prompt_topk) if needs.prompt_topk else None
        return Prefilled(output.logits[:, -1], _states(output, needs.hidden), topk)

    def rehearse(self, drafter, prompt):
        return []

    def forward(self, root: Tensor, draft: Draft, longest: int, hidden: tuple = ()):
        if not draft.is_chain:
            raise BadInput(f"model type {self.config.model_type} can only read chains")
        tokens = torch.cat([root.unsqueeze(1), draft.tokens.clamp(min=0)], 1)
        return self._rows(tokens, draft.tokens.shape[1] == 0, hidden)

    @torch.inference_mode()
    def read(self, tokens, ancestors, depths, longest, offset=0, hidden=()):
        if ancestors is not None:
            raise BadInput(f"model type {self.config.model_type} can only read chains")
        return self._rows(tokens, False, hidden)

    def _rows(self, tokens: Tensor, stays: bool, hidden: tuple):
        output = self.cache.read(tokens[0].tolist(), stays, bool(hidden))
        return output.logits, _states(output, hidden)

    def _read(self, ids: list[int], past, hidden: bool = False, **more):
        """transformers' forward of ids behind a cache."""
        tokens = torch.tensor([ids], device=self.device)
        past = {} if past is None else {self.cache_name: past}
        return self.model(tokens, use_cache=True, output_hidden_states=hidden, **past, **more)

    def _read_prompt(self, prompt: Tensor, needs: Needs):
        last = {"logits_to_keep": 1} if self.keeps_logits and not needs.prompt_topk else {}
        return self._read(prompt[0].tolist(), None, bool(needs.hidden), **last)


class EncoderDecoderTarget(OwnCacheTarget):
    """T5, BART, Marian: the encoder reads the prompt, the decoder writes the answer.

    To the loop and to drafters a sequence is the prompt and then the answer. The decoder's first
    token takes the place of the prompt's last one: after a prompt of 7 tokens the cache counts 7,
    and the decoder holds one, its start token.
    """

    def __init__(self, model):
        super().__init__(model)
        given = getattr(model.generation_config, "decoder_start_token_id", None)
        start = getattr(self.config, "decoder_start_token_id", None) if given is None else given
        if start is None:
            raise self.unsupported("its config has no decoder_start_token_id")
        self.start = start
        self.encoded, self.num_prompt = None, 0

    def fitting(self, num_prompt, limit):
        """The encoder takes the prompt, the decoder the answer: each has the whole context."""
        if self.context is None:
            return limit
        super().fitting(num_prompt, 1)
        return min(limit, self.context - 1)

    def limit_after(self, num_prompt):
        """The answer has the decoder's context, whose first token is the start token."""
        context = super().limit_after(num_prompt)
        return num_prompt + context - 1 if num_prompt <= context else 0

    @torch.inference_mode()
    def prefill(self, slots, ids, lengths, needs):
        """The encoder reads all of ids; the lengths of a draft model leave the last one out."""
        prefilled = super().prefill(slots, ids, [ids.shape[1]], needs)
        self.cache.rewind(torch.tensor(lengths))
        return prefilled

    def _read_prompt(self, prompt, needs):
        if needs.prompt_topk or needs.hidden:
            raise self.unsupported("this method learns from the decoder's view of a prompt")
        self.encoded = self.model.get_encoder()(prompt, return_dict=True)
        self.num_prompt = prompt.shape[1]
        return self._read([self.start], None)

    def whole(self, ids):
        answer = torch.tensor([[self.start, *ids[self.num_prompt :]]], device=self.device)
        encoded = self.encoded
        return self.model(
            encoder_outputs=encoded, decoder_input_ids=answer, use_cache=False
        ).logits[0]

    def _num_read(self):
        return len(self.cache.ids) - self.num_prompt + 1

    def _rows(self, tokens, stays, hidden):
        at = self.num_prompt - 1 - len(self.cache.ids)
        if 0 <= at < tokens.shape[1]:  # a draft model reads the last two tokens again
            tokens = tokens.clone()
            tokens[0, at] = self.start
        return super()._rows(tokens, stays, hidden)

    def _read(self, ids, past, hidden=False):
        return self.model(
            encoder_outputs=self.encoded,
            decoder_input_ids=torch.tensor([ids], device=self.device),
            use_cache=True,
            output_hidden_states=hidden,
            past_key_values=past,
        )


def _states(output, names: tuple) -> dict:
    """{name: [1, r, H]} of a forward's hidden states."""
    states = output.get("hidden_states") or output.get("decoder_hidden_states")
    places = {name: -1 if name == "last" else name for name in names}
    return {name: states[i].to(output.logits.device) for name, i in places.items()}
