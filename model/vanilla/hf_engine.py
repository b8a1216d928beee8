"""transformers' generate() as an engine, the baseline of most published speedups."""

from __future__ import annotations

import time

import torch

from model.common.errors import BadInput
from model.common.loop.clock import now
from model.common.loop.source import check_length
from model.common.loop.turns import StopRules, Turn
from model.common.target.attention import own_attention


def check(args) -> None:
    """Refuse what generate() cannot do the same way."""
    if args.batch_size != 1:
        raise BadInput("--engine hf decodes one sequence at a time; --batch-size must be 1")
    if args.runtime != "eager":
        raise BadInput("--engine hf runs transformers as it is; --runtime must be eager")
    if args.paired:
        raise BadInput(
            "--engine hf cannot be --paired: the baseline would be timed by another loop"
        )


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


def _sampling_options(sampler) -> dict:
    """generate()'s names of a sampler's settings."""
    names = ("temperature", "top_p", "top_k")
    values = {name: None if sampler.greedy else getattr(sampler, name) for name in names}
    return {"do_sample": not sampler.greedy, **values}


@torch.inference_mode()
def run(target, source, sampler, stop: StopRules) -> None:
    """Answer all that a decode.Source gives; phases are not known, a token is a step."""
    from transformers import GenerationConfig

    # the loop knows neither the model's penalties nor its sampling defaults, so generate() must not
    target.model.generation_config = GenerationConfig(eos_token_id=sorted(stop.eos_ids) or None)
    own_attention(target.model)
    while (request := source.take(0)) is not None:
        source.done(request, answer(target, request, sampler, stop))


def answer(target, request, sampler, stop: StopRules) -> Turn:
    """One answer by model.generate()."""
    from transformers import StoppingCriteriaList

    device, ids = target.device, request.ids
    limit = check_length(target, ids, request.limit)
    inputs = torch.tensor([ids], device=device)
    torch.manual_seed(request.seed)
    stops = _Stops(device, stop, len(ids))
    unix, begin = time.time(), now(device)
    output = target.model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=limit,
        eos_token_id=sorted(stop.eos_ids) or None,
        pad_token_id=min(stop.eos_ids, default=0),
        stopping_criteria=StoppingCriteriaList([stops]),
        **_sampling_options(sampler),
    )
    end = now(device)
    new = output[0, len(ids) :].tolist()
    kept, reason = stop.cut(new, len(new), limit)
    steps = kept - 1
    return Turn(
        output_ids=new[:kept],
        finish_reason=reason or "length",
        prefill_s=(stops.times[0] if stops.times else end) - begin,
        wall_s=end - begin,
        accept_lengths=[1] * steps,
        drafted=[0] * steps,
        depth=[0] * steps,
        begin_s=unix,
        step_end_s=[stamp - begin for stamp in stops.times[1 : steps + 1]],
    )
