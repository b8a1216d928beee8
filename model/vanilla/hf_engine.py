"""transformers' generate() as an engine, the baseline of most published speedups."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from model.common.errors import BadInput
from model.common.load.flags import is_load
from model.common.loop.clock import now
from model.common.loop.ranking import finite_rows
from model.common.loop.source import check_prompt
from model.common.loop.turns import StopRules, Turn, not_finite
from model.common.target.attention import own_attention


def check(args) -> None:
    """Refuse what generate() cannot do the same way."""
    if args.batch_size != 1:
        raise BadInput("--engine hf decodes one sequence at a time; --batch-size must be 1")
    if args.turned_rows is not None:
        raise BadInput("--engine hf runs transformers as it is; it has no --turned-rows")
    if args.runtime != "eager":
        raise BadInput("--engine hf runs transformers as it is; --runtime must be eager")
    if is_load(args):
        raise BadInput("--engine hf answers one question after another; it serves no load")
    if args.paired:
        raise BadInput("--engine hf cannot be --paired: its pairs would be timed by another loop")


class _Stops:
    """A stopping criterion for stop strings; its calls tell when every token stood."""

    def __init__(self, device, stop: StopRules, num_prompt: int):
        self.device, self.times = device, []
        self.stop, self.num_prompt = stop, num_prompt

    def __call__(self, ids, scores, **_):
        self.times.append(now(self.device) if not self.times else time.perf_counter())
        ends = False
        if self.stop.strings:
            new = ids[0, self.num_prompt :].tolist()
            ends = self.stop.cut(new, 1, len(new) + 1)[1] == "stop"
        return torch.full((ids.shape[0],), ends, dtype=torch.bool, device=ids.device)


class _Finite:
    """A logits processor that notes which rows are finite; of others generate() draws any token."""

    def __init__(self):
        self.rows: list[torch.Tensor] = []  # [1] each

    def __call__(self, ids, scores):
        self.rows.append(finite_rows(scores))
        return torch.where(self.rows[-1].unsqueeze(1), scores, 0.0)

    def check(self, dtype) -> None:
        """Raise BadInput where one is not."""
        rows = torch.cat(self.rows).tolist()
        if not all(rows):
            raise BadInput(not_finite("target", rows.index(False), dtype))


class _AnswerPenalties:
    """A logits processor for the penalties that generate() has no name for; before its warpers."""

    def __init__(self, penalties, num_prompt: int):
        self.penalties, self.num_prompt = replace(penalties, repetition=1.0), num_prompt

    def __call__(self, ids, scores):
        new = ids[:, self.num_prompt :]
        counts = torch.zeros_like(scores, dtype=torch.int32)
        counts.scatter_add_(1, new, torch.ones_like(new, dtype=torch.int32))
        return self.penalties.apply(scores, counts, torch.zeros_like(scores, dtype=torch.bool))


def _sampling_options(sampler, num_prompt: int, finite: _Finite) -> dict:
    """generate()'s names of a sampler's settings; num_prompt: ids before the answer's."""
    from transformers import LogitsProcessorList

    names = ("temperature", "top_p", "top_k", "min_p")
    values = {name: None if sampler.greedy else getattr(sampler, name) for name in names}
    penalties, processors = sampler.penalties, LogitsProcessorList([finite])
    if penalties.presence or penalties.frequency:
        processors.append(_AnswerPenalties(penalties, num_prompt))
    values |= {"repetition_penalty": penalties.repetition, "logits_processor": processors}
    return {"do_sample": not sampler.greedy, **values}


@torch.inference_mode()
def run(target, source, sampler, stop: StopRules) -> None:
    """Answer all that a decode.Source gives; phases are not known, a token is a step."""
    from transformers import GenerationConfig

    # the loop knows neither the model's penalties nor its sampling defaults, so generate() must not
    target.model.generation_config = GenerationConfig(
        eos_token_id=sorted(stop.eos_ids) or None,
        decoder_start_token_id=getattr(target, "start", None),
    )
    if target.rope is not None:
        target.rope.remove()
        target.rope = None
    if target.twin is not None:  # others are loaded as transformers loads them
        own_attention(target.model)
    while (request := source.take(0)) is not None:
        source.begun(request, 0, now(target.device))
        try:
            turn = answer(target, request, sampler, stop)
        except BadInput as error:
            source.failed(request, 0, str(error))
        else:
            source.done(request, turn)


def answer(target, request, sampler, stop: StopRules) -> Turn:
    """One answer by model.generate(). Raises BadInput where there is none."""
    from transformers import StoppingCriteriaList

    device, ids = target.device, request.ids
    limit = check_prompt(target, request, stop.decode)
    inputs = torch.tensor([ids], device=device)
    torch.manual_seed(request.seed)
    first = 1 if target.model.config.is_encoder_decoder else len(ids)  # of the new ones
    stops, finite = _Stops(device, stop, first), _Finite()
    unix, begin = time.time(), now(device)
    output = target.model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=limit,
        eos_token_id=sorted(stop.eos_ids) or None,
        pad_token_id=min(stop.eos_ids, default=0),
        stopping_criteria=StoppingCriteriaList([stops]),
        **_sampling_options(sampler, first, finite),
    )
    end = now(device)
    finite.check(target.dtype)
    new = output[0, first:].tolist()
    kept, reason = stop.cut(new, len(new), limit)
    steps = kept - 1
    first_s = (stops.times[0] if stops.times else end) - begin
    return Turn(
        output_ids=new[:kept],
        finish_reason=reason or "length",
        first_s=first_s,
        prefill_s=first_s,
        wall_s=end - begin,
        accept_lengths=[1] * steps,
        drafted=[0] * steps,
        depth=[0] * steps,
        begin_s=unix,
        step_end_s=[stamp - begin for stamp in stops.times[1 : steps + 1]],
    )
