"""What a server's steps committed: several witnesses of one answer, held against each other.

    per_step   the server lists the drafts of every step (vLLM, --per-request-spec-decode-metrics
               detailed). Steps without a draft are not in the list.
    summary    its totals of the request (vLLM's summary, SGLang's spec_tokens_details, llama.cpp's
               timings)
    usage      how the count of tokens grew from event to event of the stream. An event may hold
               several steps (the client or the server was late), never a part of one, so that it
               is no evidence of steps by itself
    counters   its metrics page before and after, with one request at a time
    plain      the server, its command or --speculation says that it never drafts

Servers count the drafts that they accepted before they cut an answer at its end, so the last step
may have committed fewer tokens than its count says.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.common.records.schema import EVIDENCE


@dataclass
class Totals:
    """What a witness says of a whole answer.

    accepted   drafted tokens that were accepted
    steps      that verified a draft; None = not said
    longest    most tokens of one draft; None = not said
    """

    accepted: int
    steps: int | None = None
    longest: int | None = None

    def __str__(self):
        text = f"{self.accepted} drafted tokens accepted"
        return text if self.steps is None else f"{text} in {self.steps} steps"


@dataclass
class Finding:
    """accept_lengths and drafted (tokens a step) are None where they are not known.

    steps      number of steps, which may be known without them
    accepted   drafted tokens that the witnesses count, those behind the answer's end among them;
               None where they do not agree
    evidence   as the answer file has it; None where there is no witness
    """

    accept_lengths: list[int] | None = None
    drafted: list[int] | None = None
    steps: int | None = None
    accepted: int | None = None
    evidence: dict | None = None


def weigh(
    grown: list[int] | None,
    num_tokens: int,
    per_step: tuple[list[int], list[int]] | None = None,
    summary: Totals | None = None,
    counters: Totals | None = None,
    plain: bool = False,
) -> Finding:
    """The accept lengths that all witnesses allow.

    grown       tokens by which each event of the stream made the answer longer; None = not said
    num_tokens  of the answer, the prefill's among them
    per_step    ([accepted drafts], [drafted]) of the steps with a draft
    plain       whether the server is known never to draft: then every step is one token
    """
    totals = {"summary": summary, "counters": counters, "plain": Totals(0, 0) if plain else None}
    if per_step is not None:
        totals = {"per_step": Totals(sum(per_step[0]), len(per_step[0])), **totals}
    totals = {name: said for name, said in totals.items() if said is not None}
    if not totals:
        return Finding()
    if contradiction := _contradiction(totals):
        return _disagree(next(iter(totals)), contradiction)
    if per_step is None and any(said.accepted == said.steps == 0 for said in totals.values()):
        per_step = [], []
    groups = [grown[0] - 1, *grown[1:]] if grown else None  # the prefill's token is in no step
    groups = [size for size in groups if size] if grown else None
    witnesses = [name for name in EVIDENCE if name in totals or name == "usage" and grown]
    if per_step is not None:
        found = _listed(groups, num_tokens, per_step, witnesses)
    else:
        found = _counted(groups, num_tokens, totals, witnesses)
    if found.evidence["disagree"] is None:
        found.accepted = next(iter(totals.values())).accepted
    return found


def run_contradiction(accepted: list[int | None], counters: Totals | None) -> str | None:
    """What speaks against the accept lengths of a whole run, in a sentence; None: nothing does.

    accepted  of its answers, as in Finding: how many were in flight at a time does not matter
    counters  of its metrics page over the run; None = there is none, or it counted others too
    """
    if counters is None or None in accepted or sum(accepted) == counters.accepted:
        return None
    return f"the run's answers: {Totals(sum(accepted))}; counters: {counters}"


def _contradiction(totals: dict[str, Totals]) -> str | None:
    """The first two witnesses whose totals differ, in a sentence."""
    names = list(totals)
    for name in names[1:]:
        first, other = totals[names[0]], totals[name]
        steps = None not in (first.steps, other.steps) and first.steps != other.steps
        if first.accepted != other.accepted or steps:
            return f"{names[0]}: {first}; {name}: {other}"
    return None


def _disagree(source: str, sentence: str) -> Finding:
    return Finding(evidence={"source": source, "checked": [], "disagree": sentence})


def _agree(witnesses: list[str], **known) -> Finding:
    source, *others = witnesses
    return Finding(evidence={"source": source, "checked": others, "disagree": None}, **known)


def _listed(groups, num_tokens: int, per_step, witnesses) -> Finding:
    """Of a server that lists its steps: where they stand among the events."""
    accepted, drafted = per_step
    lengths = [count + 1 for count in accepted]
    placed = place(groups if groups is not None else [num_tokens - 1], lengths)
    if placed is None:
        shown = f"steps of {_some(lengths)} tokens, events of {_some(groups or [])}"
        return _disagree(witnesses[0], f"{witnesses[0]} and usage: {shown}")
    of = iter(drafted)
    nodes = [next(of) if is_drafted else 0 for _, is_drafted in placed]
    found = [length for length, _ in placed]
    return _agree(witnesses, accept_lengths=found, drafted=nodes, steps=len(found))


def _some(values: list[int]) -> str:
    text = ", ".join(map(str, values[:12]))
    return f"{text}, ..." if len(values) > 12 else text or "none"


def place(groups: list[int], lengths: list[int]) -> list[tuple[int, bool]] | None:
    """[(tokens, had a draft)] of all steps: `lengths` in order, steps of one token without a draft
    between them, so that every group of tokens is whole steps; None where that cannot be.

    The answer's last step may have been cut. Where an event holds several steps, their order is not
    known: those with a draft stand first, a cut one last.

    >>> place([3, 1, 4], [3, 4]), place([1, 1], [3, 1]), place([5], [3, 3])
    ([(3, True), (1, False), (4, True)], None, [(3, True), (2, True)])
    """
    found = _whole(groups, lengths)
    for cut in range(1, lengths[-1] if lengths else 0):
        found = found or _whole(groups, [*lengths[:-1], lengths[-1] - cut], is_cut=True)
    return found


def _whole(groups: list[int], lengths: list[int], is_cut: bool = False):
    """place() for steps of these very lengths; is_cut: the last of them ends the answer."""
    ends = [{len(lengths)}]  # from behind: how many lengths may be used up before each group
    for size in reversed(groups):
        begins = {first for last in ends[-1] for first in _begins(lengths, last, size)}
        if is_cut and len(ends) == 1:
            begins.discard(len(lengths))
        ends.append(begins)
    if 0 not in ends[-1]:
        return None
    found, used = [], 0
    for place_of, size in enumerate(groups, 1):
        cut_here = is_cut and place_of == len(groups)
        allowed = ends[len(groups) - place_of]
        fits = [last for last in allowed if used in _begins(lengths, last, size)]
        # one step that fills the group, before several that share it
        last = min(fits, key=lambda last: (sum(lengths[used:last]) != size, abs(last - used - 1)))
        own = [(length, True) for length in lengths[used:last]]
        plain = [(1, False)] * (size - sum(lengths[used:last]))
        whole = own[:-1] if cut_here else own
        found += [*whole, *plain, *own[len(whole) :]]
        used = last
    return found


def _begins(lengths: list[int], last: int, size: int):
    """Every `first` for which lengths[first:last] find room in `size` tokens."""
    room = size
    yield last
    for first in range(last - 1, -1, -1):
        room -= lengths[first]
        if room < 0:
            return
        yield first


def _counted(groups, num_tokens: int, totals: dict[str, Totals], witnesses) -> Finding:
    """Of a server that lists no steps: every event is one, if the totals allow it."""
    said = next(iter(totals.values()))
    if groups is None:
        return _agree(witnesses, steps=max(num_tokens - 1 - said.accepted, said.steps or 0))
    longest = max([said.longest or 0, *(size - 1 for size in groups)])
    surplus = said.accepted - sum(size - 1 for size in groups)
    last = groups[-1] if groups else 1
    several = sum(size > 1 for size in groups)
    steps_fit = said.steps is None or several <= said.steps <= len(groups)
    if 0 <= surplus <= max(longest + 1 - last, 0) and steps_fit:
        return _agree(witnesses, accept_lengths=groups, steps=len(groups))
    steps = max(num_tokens - 1 - said.accepted, said.steps or 0)
    if surplus < 0 and steps >= len(groups):  # events that hold several steps
        return _agree([name for name in witnesses if name != "usage"], steps=steps)
    shown = f"{len(groups)} events that make {sum(size - 1 for size in groups)} accepted"
    return _disagree(witnesses[0], f"{next(iter(totals))}: {said}; usage: {shown}")
