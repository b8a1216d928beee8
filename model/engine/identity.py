"""Who the server is and what its metrics page counts."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from dataclasses import dataclass, field

from model.common.errors import BadInput
from model.common.records.writer import sha256_text
from model.engine.client import Client, ServerError
from model.engine.evidence import Totals

KNOWN = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}  # by /v1/models' owned_by
# (tokens generated, steps with a draft, drafted tokens that were accepted) on a metrics page
COUNTERS = {
    "vllm": (
        "vllm:generation_tokens_total",
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    ),
    "llama.cpp": (
        "llamacpp:tokens_predicted_total",
        "llamacpp:spec_decode_num_drafts_total",
        "llamacpp:spec_decode_num_accepted_tokens_total",
    ),
}
SAMPLE = re.compile(r"^([\w:]+)(?:\{.*\})?\s+([-+.\dEe]+)\s*$", re.MULTILINE)
# words of a server's command: flags, and llama.cpp's variables of the environment
SPECULATIVE = re.compile(
    r"^--?(spec|draft|model-draft|hf-repo-draft|(md|hfr?d|sc)([.=]|$))"
    r"|^LLAMA_ARG_\w*(SPEC|DRAFT|HFD)\w*="
)
CONFIG = re.compile(r"^--config(=|$)")  # a file, which may say the same
LATE_TRIES, LATE_S = 20, 0.05  # for a page that counts a little later than the answer ended


@dataclass
class Identity:
    """A server as it describes itself.

    name     vllm, sglang, llama.cpp or "unknown"; version None where it does not say
    models   names that it serves; None = it has no list
    context      most tokens of prompt and answer together; None = not said
    speculation  how it drafts, "none" or None = it does not say
    """

    name: str = "unknown"
    version: str | None = None
    models: list[str] | None = None
    context: int | None = None
    speculation: str | None = None
    facts: dict = field(default_factory=dict)  # for the meta, not compared


async def identify(client: Client, command: str | None = None) -> Identity:
    """Ask for all that a server says of itself. Raises BadInput where it cannot be reached.

    command: with which it was started, where that is known.
    """
    try:
        listed = await client.get("/v1/models")
        found = Identity(models=_models(listed))
        owners = {str(item.get("owned_by")) for item in _items(listed)}
        context = next((item.get("max_model_len") for item in _items(listed)), None)
        found.context = context if type(context) is int else None
        found.name = next((KNOWN[owner] for owner in owners if owner in KNOWN), "unknown")
        await _version(client, found)
        page = await counted(client, found.name)
    except ServerError as error:
        raise BadInput(str(error)) from error
    said = speculation_of(command) if command is not None else None
    if said not in (None, "none"):  # flags, which name it best
        found.speculation = said
    elif found.name == "vllm" and page is not None:
        found.speculation = "none" if page.drafts is None else "unnamed"
    elif found.speculation is None and found.name != "unknown":  # whose flags may be any
        found.speculation = said
    return found


def _items(listed) -> list[dict]:
    items = listed.get("data") if isinstance(listed, dict) else None
    return [item for item in items or [] if isinstance(item, dict)]


def _models(listed) -> list[str] | None:
    return [str(item.get("id")) for item in _items(listed)] or None


async def _version(client: Client, found: Identity) -> None:
    """Fill in version and speculation from the page that each server has."""
    if found.name == "sglang":
        info = await client.get("/server_info") or await client.get("/get_server_info")
        if isinstance(info, dict):
            found.version = info.get("version")
            said = {k: v for k, v in info.items() if k.startswith("speculative_") and v is not None}
            found.speculation = _named(said) if said.get("speculative_algorithm") else "none"
    elif found.name == "llama.cpp":
        info = await client.get("/props")
        if isinstance(info, dict):
            found.version = info.get("build_info")
            found.facts["slots"] = info.get("total_slots")
    else:
        info = await client.get("/version")
        found.version = info.get("version") if isinstance(info, dict) else None


def _named(settings: dict) -> str:
    return json.dumps(settings, sort_keys=True)


def speculation_of(command: str) -> str | None:
    """The flags of a server's command that say how it drafts; "none" without any.

    None where a file of settings may say it.

    >>> speculation_of("vllm serve M -sc '{\\"method\\": \\"ngram\\"}' --port 1")
    '-sc {"method": "ngram"}'
    >>> speculation_of("llama-server -m M -hfd ORG/DRAFT"), speculation_of("vllm serve M -scale 2")
    ('-hfd ORG/DRAFT', 'none')
    """
    words, found = shlex.split(command), []
    for place, word in enumerate(words):
        if SPECULATIVE.match(word):
            own = words[place + 1 : place + 2] if "=" not in word else []
            found += [word, *(value for value in own if not value.startswith("-"))]
    if not found and any(map(CONFIG.match, words)):
        return None
    return " ".join(found) or "none"


def command_sha256(command: str | None) -> str | None:
    """Of a server's command but for its port, which changes nothing.

    >>> command_sha256("serve M --port 1 --seed 2") == command_sha256("serve M --seed 2 --port=3")
    True
    """
    if command is None:
        return None
    words = iter(shlex.split(command))
    kept = []
    for word in words:
        if word == "--port":
            next(words, None)
        elif not word.startswith("--port="):
            kept.append(word)
    return sha256_text(json.dumps(kept))


def check_model(found: Identity, url: str, wanted: str | None) -> str:
    """The model to ask for. Raises BadInput where the server has no such one, or several."""
    if wanted is None:
        if found.models is None or len(found.models) != 1:
            listed = ", ".join(found.models or []) or "it has no list"
            raise BadInput(f"--model is needed: which one of {url}? ({listed})")
        return found.models[0]
    if found.models is not None and wanted not in found.models and found.name != "llama.cpp":
        raise BadInput(f"--model {wanted}: {url} serves {', '.join(found.models)}")
    return wanted


@dataclass
class Counted:
    """A metrics page at one moment; drafts and accepted are None where it has no such counters."""

    tokens: float
    drafts: float | None
    accepted: float | None


async def counted(client: Client, name: str) -> Counted | None:
    """What the metrics page of a server counts; None where there is none."""
    page = await client.get("/metrics") if name in COUNTERS else None
    if not isinstance(page, str):
        return None
    sums: dict[str, float] = {}
    for metric, value in SAMPLE.findall(page):
        sums[metric] = sums.get(metric, 0.0) + float(value)
    tokens, drafts, accepted = (sums.get(metric) for metric in COUNTERS[name])
    return None if tokens is None else Counted(tokens, drafts, accepted)


async def counted_after(client: Client, name: str, before: Counted, num_tokens: int):
    """(the page once it has counted an answer's tokens, Totals of that answer).

    Totals are None where the page counted other tokens too, or fewer: then they are not of this
    answer alone.
    """
    for _ in range(LATE_TRIES):
        after = await counted(client, name)
        if after is None:
            return None, None
        if after.tokens - before.tokens >= num_tokens:
            break
        await asyncio.sleep(LATE_S)
    if after.tokens - before.tokens != num_tokens:
        return after, None
    return after, difference(before, after)


def difference(before: Counted, after: Counted) -> Totals:
    """What was drafted between two moments; a page without the counters never drafts."""
    accepted = (after.accepted or 0) - (before.accepted or 0)
    drafts = (after.drafts or 0) - (before.drafts or 0)
    return Totals(round(accepted), round(drafts))
