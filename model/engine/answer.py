"""A server's reply as a turn of an answer file; records/schema.py defines the fields."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.common.loop.turns import StopRules, Turn
from model.common.records.schema import EVIDENCE
from model.engine.client import Reply, ServerError
from model.engine.dialects import cached_tokens, witnesses
from model.engine.evidence import Finding, Totals, weigh

BROKEN = ("abort", "error", "content_filter", "cancelled")  # finish reasons that are failures


@dataclass
class ServedTurn(Turn):
    """A Turn that came in chunks. output_ids and accept_lengths are None where they are not known.

    num_tokens    of the answer; num_counted: what the server counts, before our stop rules
    prompt_tokens  of the prompt, as the server counts them; None = not said
    chunk_end_s   of every chunk behind the first, seconds after begin_s
    chunk_tokens  of every chunk; estimated: from the length of their texts
    grown         tokens that every event of the stream added; None = not said
    said          (per_step, summary) of the server
    cached        tokens of the prompt that it took from earlier requests; None = not said
    tries         requests that were needed
    """

    text: str = ""
    num_tokens: int = 0
    num_counted: int = 0
    prompt_tokens: int | None = None
    chunk_end_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    estimated: bool = False
    grown: list[int] | None = None
    said: tuple = (None, None)
    cached: int | None = None
    tries: int = 1
    finding: Finding = field(default_factory=Finding)

    def weigh(self, counters: Totals | None, plain: bool) -> None:
        """Find the accept lengths.

        counters: of the server's metrics page, None = unknown; plain: the server never drafts.
        """
        per_step, summary = self.said
        found = weigh(self.grown, self.num_tokens, per_step, summary, counters, plain)
        self.finding, self.accept_lengths = found, found.accept_lengths
        self.drafted = found.drafted


def served_turn(reply: Reply, stop: StopRules, limit: int, slot: int) -> ServedTurn:
    """The turn of a whole reply. Raises ServerError where it is no answer, or counts no tokens.

    Ids are cut by our stop rules, as the loop's are: a server may send what lies behind an end.
    """
    finish, last_s = _finish(reply)
    facts: dict = {}
    for _, event in reply.events:
        facts |= event.facts
    total = next((e.count for _, e in reversed(reply.events) if e.count is not None), None)
    ids = _ids(reply, facts, total)
    if ids is None and total is None:
        raise ServerError("the server says neither token ids nor token usage: nothing to count")
    num_counted = len(ids) if ids is not None else total
    if not num_counted:
        raise ServerError("an answer without a token")
    kept, reason = num_counted, ""
    if ids is not None:
        kept, reason = stop.cut(ids, len(ids), limit)
    times, sizes, estimated = _chunks(reply, ids is not None, num_counted, last_s)
    times, sizes = _first(times, sizes, kept)
    sized = _by_counts(reply) or (_by_ids(reply) if ids is not None else None)
    grown = _first(sized, [size for _, size in sized], kept)[1] if sized else None
    end_s = times[-1] if kept < num_counted else max(times[-1], last_s)
    usage = facts.get("usage") or {}
    prompt_tokens = usage.get("prompt_tokens")
    return ServedTurn(
        output_ids=None if ids is None else ids[:kept],
        finish_reason=reason or finish,
        prefill_s=times[0],
        wall_s=end_s,
        begin_s=reply.begin_s,
        slot=slot,
        text="".join(event.text for _, event in reply.events).strip(),
        num_tokens=kept,
        num_counted=num_counted,
        prompt_tokens=prompt_tokens if type(prompt_tokens) is int else None,
        chunk_end_s=times[1:],
        chunk_tokens=sizes,
        estimated=estimated,
        grown=grown,
        said=witnesses(facts),
        cached=cached_tokens(facts),
        tries=reply.tries,
    )


def _finish(reply: Reply) -> tuple[str, float]:
    """(why the answer ended, when the server said so)."""
    for stamp, event in reply.events:
        if event.finish:
            if event.finish in BROKEN:
                raise ServerError(f"the server ended the answer: {event.finish}")
            return event.finish, stamp
    raise ServerError("no finish reason")


def _ids(reply: Reply, facts: dict, total: int | None) -> list[int] | None:
    """All token ids; None where the server has not sent them all.

    llama.cpp holds back tokens that are parts of a character, and never sends them.
    """
    ids = [token for _, event in reply.events for token in event.ids or []]
    if not ids and "output_ids" in facts:
        ids = list(facts["output_ids"])
    return ids if ids and total in (None, len(ids)) else None


def _by_ids(reply: Reply) -> list[tuple[float, int]]:
    """[(when, tokens)] of the events that brought ids.

    llama.cpp sends a step's tokens one by one, each with the count of them all: one chunk.
    """
    found, before = [], None
    for stamp, event in reply.events:
        if not event.ids:
            continue
        if event.count is not None and event.count == before:
            first, size = found.pop()
            found.append((first, size + len(event.ids)))
        else:
            found.append((stamp, len(event.ids)))
        before = event.count
    return found


def _by_counts(reply: Reply) -> list[tuple[float, int]] | None:
    """[(when, tokens)] by which the answer grew; None where not every event tells."""
    if any(event.has_tokens and event.count is None for _, event in reply.events):
        return None
    found, before = [], 0
    for stamp, event in reply.events:
        if event.count is not None and event.count > before:
            found.append((stamp, event.count - before))
            before = event.count
    return found


def _chunks(reply: Reply, has_ids: bool, total: int, last_s: float):
    """(when each chunk came, its tokens, whether these are estimates); the sum is the total.

    Tokens that no event shows, an end token say, came with the event that ended the answer.
    """
    sized, estimated = (_by_ids(reply) if has_ids else None) or _by_counts(reply), False
    if not sized:
        sized, estimated = _by_text(reply, total), True
    times, sizes = [stamp for stamp, _ in sized], [size for _, size in sized]
    if missing := total - sum(sizes):
        times, sizes = [*times, max(last_s, *times, 0.0)], [*sizes, missing]
    return times, sizes, estimated


def _by_text(reply: Reply, total: int) -> list[tuple[float, int]]:
    """The total, shared by the length of the texts; the first chunk has one token at least."""
    texts = [(stamp, len(event.text)) for stamp, event in reply.events if event.text]
    length, seen, before, found = sum(size for _, size in texts), 0, 0, []
    for stamp, size in texts:
        seen += size
        tokens = max(round(total * seen / length), 1)
        if tokens > before:
            found.append((stamp, tokens - before))
            before = tokens
    return found


def _first(values: list, sizes: list[int], total: int) -> tuple[list, list[int]]:
    """The first of values and sizes, cut so that the sizes' sum is the total.

    >>> _first(["a", "b", "c"], [1, 3, 2], 3)
    (['a', 'b'], [1, 2])
    """
    found = []
    for size in sizes:
        found.append(min(size, total - sum(found)))
        if sum(found) == total:
            break
    return values[: len(found)], found


def served_choice(index: int, texts: list[str], turns: list[ServedTurn], prompts: list[int]):
    """One element of a record's `choices`, of a server's answer; prompts: lengths in tokens."""
    findings = [turn.finding for turn in turns]
    evidence = joined([finding.evidence for finding in findings])
    sure = evidence is not None and evidence["disagree"] is None
    steps = [finding.steps for finding in findings] if sure else [None]
    chunks = [len(turn.chunk_tokens) - 1 for turn in turns]
    lengths = [turn.accept_lengths for turn in turns] if sure else [None]
    drafted = [turn.drafted for turn in turns] if sure else [None]
    found = {
        "index": index,
        "turns": texts,
        "decoding_steps": chunks if None in steps else steps,
        "new_tokens": [turn.num_tokens for turn in turns],
        "wall_time": [round(turn.wall_s, 7) for turn in turns],
        "output_ids": [turn.output_ids for turn in turns],
        "accept_lengths": lengths if None in lengths else [n for own in lengths for n in own],
        "prompt_tokens": prompts,
        "finish_reason": [turn.finish_reason for turn in turns],
        "prefill_s": [round(turn.prefill_s, 7) for turn in turns],
        "begin_s": [round(turn.begin_s, 6) for turn in turns],
        "slot": [turn.slot for turn in turns],
        "drafted": drafted,
        "chunk_end_s": [[round(s, 7) for s in turn.chunk_end_s] for turn in turns],
        "chunk_tokens": [turn.chunk_tokens for turn in turns],
        "accept_evidence": evidence,
        "tries": [turn.tries for turn in turns],
    }
    if any(turn.estimated for turn in turns):
        found["chunk_tokens_estimated"] = True
    unknown = [name for name in ("output_ids", "accept_lengths", "drafted") if None in found[name]]
    return {name: value for name, value in found.items() if name not in unknown}


def joined(parts: list[dict | None]) -> dict | None:
    """The evidence of a choice from that of its turns: no better than the least of them."""
    if None in parts or not parts:
        return None
    for number, part in enumerate(parts):
        if part["disagree"]:
            where = f"turn {number}: " if len(parts) > 1 else ""
            return part | {"disagree": where + part["disagree"]}
    source = max((part["source"] for part in parts), key=EVIDENCE.index)
    agree = [{part["source"], *part["checked"]} - {source} for part in parts]
    common = set.intersection(*agree)
    return {"source": source, "checked": [n for n in EVIDENCE if n in common], "disagree": None}


def doubted(record: dict, sentence: str) -> dict:
    """An answer's record without its accept lengths; the sentence says what speaks against them."""
    choices = []
    for choice in record["choices"]:
        kept = {k: v for k, v in choice.items() if k not in ("accept_lengths", "drafted")}
        kept["decoding_steps"] = [len(tokens) - 1 for tokens in choice["chunk_tokens"]]
        kept["accept_evidence"] = choice["accept_evidence"] | {"checked": [], "disagree": sentence}
        choices.append(kept)
    return record | {"choices": choices}
