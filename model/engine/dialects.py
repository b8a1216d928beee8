"""What is asked of a server, and how its answer's events are read: three interfaces.

completions   OpenAI's /v1/completions with the prompt's token ids (vLLM, SGLang)
chat          OpenAI's /v1/chat/completions: the server renders the messages by its own template
llamacpp      llama.cpp's own /completion, which returns token ids; the OpenAI interface does not

Source: vLLM 0.32 (entrypoints/openai), SGLang (srt/entrypoints/openai/protocol.py, utils.py) and
llama.cpp (tools/server/README.md), as of 2026.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model.common.errors import BadInput
from model.engine.evidence import Totals

PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "llamacpp": "/completion",
}
LLAMA_ENDS = {"eos": "stop", "word": "stop", "limit": "length"}
MAX_SEED = 2**31  # llama.cpp takes 32 bits
# sampling beyond OpenAI's own fields: {flag: value that asks for nothing}
BEYOND_OPENAI = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
SALTED = ("vllm", "sglang")  # servers that keep the prompts of two salts apart (cache_salt)


@dataclass
class Asked:
    """One prompt for a server.

    ids, messages  of the prompt: the interface decides which is sent
    stop           turns.StopRules
    salt           of the server's prompt cache; None = it may serve prompts from earlier requests
    """

    ids: list[int]
    messages: list[dict]
    limit: int
    seed: int
    stop: object
    salt: str | None = None


@dataclass(frozen=True)
class Interface:
    """Which interface a server has; extended: it takes more than OpenAI's own fields."""

    name: str
    extended: bool

    @property
    def path(self) -> str:
        return PATHS[self.name]

    def isolates(self, server: str) -> bool:
        """Whether this server, an Identity's name, reads a prompt anew where it is asked to."""
        return self.name == "llamacpp" or (self.extended and server in SALTED)

    def body(self, model: str, asked: Asked, args) -> dict:
        """The request as JSON; raises BadInput for a flag that this interface cannot say."""
        body = llama_body(asked, args) if self.name == "llamacpp" else self._openai(asked, args)
        return body | {"model": model, "stream": True} | (args.extra_body or {})

    def _openai(self, asked: Asked, args) -> dict:
        body = {"max_tokens": asked.limit, "temperature": args.temperature, "top_p": args.top_p}
        body |= {"stream_options": {"include_usage": True}}
        for name in ("presence_penalty", "frequency_penalty"):
            body |= {name: getattr(args, name)}
        if args.temperature > 0:
            body["seed"] = asked.seed % MAX_SEED
        if asked.stop.strings:
            body["stop"] = list(asked.stop.strings)
        body |= {"messages": asked.messages} if self.name == "chat" else {"prompt": asked.ids}
        if self.extended:
            return body | self._extensions(asked, args)
        for name, neutral in BEYOND_OPENAI.items():
            refuse(args, name, neutral, "this server takes OpenAI's own fields alone")
        for name, neutral in {"stop_token_ids": None, "ignore_eos": False}.items():
            refuse(args, name, neutral, "this server takes OpenAI's own fields alone")
        return body

    def _extensions(self, asked: Asked, args) -> dict:
        """vLLM's and SGLang's. What is not said would come from the model's generation config."""
        more = {name: getattr(args, name) for name in BEYOND_OPENAI}
        more |= {"top_k": args.top_k or -1, "ignore_eos": args.ignore_eos}
        more |= {"stop_token_ids": sorted(asked.stop.eos_ids)}
        more |= {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        more |= {"return_token_ids": True, "return_spec_tokens_details": True}
        if self.name == "chat" and args.template_args:
            more["chat_template_kwargs"] = args.template_args
        return more | ({"cache_salt": asked.salt} if asked.salt else {})


def llama_body(asked: Asked, args) -> dict:
    """Samplers in transformers' order; its penalties of presence count the prompt, ours do not."""
    for name in ("presence_penalty", "frequency_penalty"):
        refuse(args, name, 0.0, "llama.cpp's counts the prompt's tokens too")
    refuse(args, "stop_token_ids", None, "llama.cpp ends at its model's own end tokens")
    return {
        "prompt": asked.ids,
        "n_predict": asked.limit,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
        **{name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")},
        "repeat_penalty": args.repetition_penalty,
        "repeat_last_n": -1,
        "seed": asked.seed % MAX_SEED,
        "stop": list(asked.stop.strings),
        "ignore_eos": args.ignore_eos,
        "return_tokens": True,
        "timings_per_token": True,
        "cache_prompt": asked.salt is None,
    }


def refuse(args, name: str, neutral, reason: str) -> None:
    """Raise BadInput where a flag asks for what cannot be said."""
    if getattr(args, name) != neutral:
        raise BadInput(f"--{name.replace('_', '-')}: {reason}")


@dataclass
class Event:
    """One event of a stream.

    ids     token ids that came with it; None = not said
    count   tokens of the answer so far; None = not said
    finish  why the answer ended, of its last event
    facts   what the server says of the whole answer, by name
    error   in place of all else
    """

    text: str = ""
    ids: list[int] | None = None
    count: int | None = None
    finish: str | None = None
    facts: dict = field(default_factory=dict)
    error: str | None = None

    @property
    def has_tokens(self) -> bool:
        return bool(self.text or self.ids)


def read_event(data) -> Event:
    """An event's JSON, of any of the interfaces. Raises ValueError where it is none of theirs."""
    if not isinstance(data, dict):
        raise ValueError("no JSON object")
    if (error := error_in(data)) is not None:
        return Event(error=error)
    facts = {name: data[name] for name in ("usage", "timings") if isinstance(data.get(name), dict)}
    facts |= _facts_beside(data)
    event = Event(count=_count(data), facts=facts)
    choices = data.get("choices")
    if choices is None:
        if not isinstance(data.get("content"), str):
            raise ValueError("neither choices nor content")
        event.text, event.ids = data["content"], data.get("tokens")
        if data.get("stop"):
            event.finish = LLAMA_ENDS.get(data.get("stop_type"), "stop")
    elif choices:
        choice = choices[0]
        delta = choice.get("delta") or {}
        thoughts = delta.get("reasoning_content") or delta.get("reasoning") or ""
        event.text = choice.get("text") or thoughts + (delta.get("content") or "")
        event.ids = choice.get("token_ids", choice.get("response_token_ids"))
        event.finish = choice.get("finish_reason")
    if event.ids is not None and not all(type(token) is int for token in event.ids):
        raise ValueError("token ids that are no numbers")
    return event


def error_in(data: dict) -> str | None:
    """The message of an error object, OpenAI's or the servers' own; None where there is none."""
    error = data.get("error", data if data.get("object") == "error" else None)
    if error is None:
        return None
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]


def _count(data: dict) -> int | None:
    """Tokens of the answer so far. llama.cpp counts all of a step with the step's first token."""
    usage, timings = data.get("usage") or {}, data.get("timings") or {}
    for value in (usage.get("completion_tokens"), timings.get("predicted_n")):
        if type(value) is int:
            return value
    return None


def _facts_beside(data: dict) -> dict:
    """What vLLM and SGLang add to a stream's last events."""
    found, metrics, extension = {}, data.get("metrics"), data.get("sglext")
    if isinstance(metrics, dict) and isinstance(metrics.get("speculative_decoding"), dict):
        found["speculative_decoding"] = metrics["speculative_decoding"]
    if isinstance(extension, dict):
        details, ids = extension.get("spec_tokens_details"), extension.get("output_ids")
        details = details[0] if isinstance(details, list) and details else details
        found |= {"spec_tokens_details": details} if isinstance(details, dict) else {}
        found |= {"output_ids": ids[0]} if isinstance(ids, list) and ids else {}
    return found


def cached_tokens(facts: dict) -> int | None:
    """Tokens of the prompt that a server took from earlier requests; None = it does not say."""
    usage, timings = facts.get("usage") or {}, facts.get("timings") or {}
    details = usage.get("prompt_tokens_details")
    said = details.get("cached_tokens") if isinstance(details, dict) else timings.get("cache_n")
    return said if type(said) is int else None


def witnesses(facts: dict) -> tuple[tuple | None, Totals | None]:
    """(per_step, summary) of what a server said of an answer, as evidence.weigh() takes them."""
    if (said := facts.get("speculative_decoding")) is not None:
        accepted, drafted = said.get("per_step_accepted"), said.get("per_step_drafted")
        listed = (accepted, drafted) if accepted is not None and drafted is not None else None
        names = ("num_accepted_draft_tokens", "num_spec_steps", "num_spec_tokens")
        return listed, _totals(*(said.get(name) for name in names))
    if (said := facts.get("spec_tokens_details")) is not None:
        return None, _totals(said.get("spec_num_correct_drafts"), said.get("spec_verify_ct"))
    if (said := facts.get("timings")) is not None and "predicted_n" in said:
        if "draft_n" not in said:  # it is left out where nothing was drafted
            return None, Totals(0, 0)
        return None, _totals(said.get("draft_n_accepted"))
    return None, None


def _totals(accepted, steps=None, longest=None) -> Totals | None:
    return Totals(accepted, steps, longest) if type(accepted) is int else None
