"""What two answer files do not count alike: oddities of either, and of the two together."""

from collections import Counter
from types import SimpleNamespace

from evaluation.answers.differences import file_verdicts
from evaluation.audit.oddities import (
    Finding,
    at_turn,
    find_in,
    first_choices,
    most_tokens,
    of_turns,
)
from evaluation.audit.recount import FITS, fit, stale_turns, turns_of


def find_all(method, base):
    """Every Finding of a method's Side against the baseline's that the files alone show."""
    found = [*question_sets(method, base), *find_in(base, method), *find_in(method, base)]
    found += [fits(method, base), surplus(method, base), token_limit(method, base)]
    found.append(texts(method, base))
    return [finding for finding in found if finding is not None]


def question_sets(method, base):
    """Yield what differs in the questions, their order and their shapes."""
    for side, other in ((method, base), (base, method)):
        ids = [question.question_id for question in side.questions]
        theirs = other.firsts
        places = [(i, f"question {i}") for i in side.firsts if i not in theirs]
        text = f"{len(places)} questions are not in the {other.name}'s file"
        yield of_turns("question sets", side, True, text, places)
        seen, again = set(), []
        for line, question_id in zip(side.lines, ids):
            if question_id in seen:
                again.append((question_id, f"question {question_id} line {line}"))
            seen.add(question_id)
        text = f"{len(again)} lines repeat a question; the recount takes the first"
        yield of_turns("duplicate questions", side, True, text, again)
        failed = [(q.question_id, f"question {q.question_id}") for q in side.questions if q.error]
        yield of_turns("failed questions", side, False, f"{len(failed)} marked as failed", failed)
    ours, theirs = method.firsts, base.firsts
    common, base_order = [i for i in ours if i in theirs], [i for i in theirs if i in ours]
    moved = [(i, f"question {i}, baseline {j}") for i, j in zip(common, base_order) if i != j]
    text = f"{len(moved)} places of the files hold different questions"
    yield of_turns("order of questions", method, False, text, moved)
    odd = []
    for i in common:
        pair = ours[i][1], theirs[i][1]
        shapes = [(q.category, len(q.choices[0].texts)) for q in pair if q.choices]
        if len(set(shapes)) > 1:
            odd.append((i, f"question {i} ({shapes[0]}, baseline {shapes[1]})"))
    text = f"{len(odd)} questions differ in category or number of turns"
    yield of_turns("different questions", method, True, text, odd)


def fits(method, base):
    """Which rule the accept lengths follow on each side; a Finding where the rules differ."""
    counts = [Counter(fit(c) for _, c in first_choices(side)) for side in (method, base)]
    used = [{name for name in FITS[:2] if count[name]} for count in counts]
    if used[0] == used[1] or not all(used):
        return None
    listed = [", ".join(f"{n} {name}" for name, n in fit_counts(s).items()) for s in (method, base)]
    text = f"the sums are: {listed[0]}; baseline {listed[1]}: the prefill's token is in one of them"
    return Finding("accept lengths", "both", False, text)


def fit_counts(side):
    """{rule: number of questions whose accept lengths sum to it}."""
    counts = Counter(fit(choice) for _, choice in first_choices(side))
    return {name: counts[name] for name in FITS if counts[name]}


def paired_turns(method, base):
    """[(Turn, baseline's Turn)] of what both sides have and count, stale turns apart."""
    theirs, left_out = {}, set()
    for side in (method, base):
        left_out |= {turn.question_id for turn, _ in stale_turns(side.questions)}
    for turn in turns_of([question for _, question in base.firsts.values()]):
        theirs[turn.question_id, turn.index] = turn
    ours = turns_of([question for _, question in method.firsts.values()])
    pairs = [(turn, theirs.get((turn.question_id, turn.index))) for turn in ours]
    known = [(t, b) for t, b in pairs if b is not None and t.question_id not in left_out]
    return [(t, b) for t, b in known if not (t.uncounted or b.uncounted)]


def beyond(pairs):
    """(places, {question_id: tokens}) from [(Turn, tokens, words)]."""
    totals = Counter()
    for turn, tokens, _ in pairs:
        totals[turn.question_id] += tokens
    return [at_turn(turn, words) for turn, _, words in pairs], dict(totals)


def surplus(method, base):
    """Turns of equal text with unequal new_tokens: a side counts what the text does not show."""
    apart = [
        (t, t.tokens - b.tokens, f"{t.tokens} tokens, baseline {b.tokens}")
        for t, b in paired_turns(method, base)
        if t.text == b.text and t.tokens != b.tokens
    ]
    if not apart:
        return None
    places, totals = beyond(apart)
    text = f"turns of equal text: {len(apart)}, {sum(totals.values()):+d} tokens in the method"
    return Finding("tokens not in the text", "both", False, text, places, totals)


def token_limit(method, base):
    """The method's tokens beyond the most that the baseline may make."""
    limit = most_tokens(base)
    if limit is None:
        return None
    pairs = paired_turns(method, base)
    over = [(t, t.tokens - limit, f"{t.tokens} tokens") for t, _ in pairs if t.tokens > limit]
    if not over:
        return None
    places, totals = beyond(over)
    text = f"{len(over)} turns go beyond the baseline's {limit} tokens, by {sum(totals.values())}"
    return Finding("token limit", "method", False, text, places, totals)


def texts(method, base):
    """Turns whose texts differ."""
    verdicts = file_verdicts(
        *(
            SimpleNamespace(
                questions={i: question for i, (_, question) in side.firsts.items()}, is_share=False
            )
            for side in (base, method)
        )
    )
    places = [
        (d.question_id, f"question {d.question_id} turn {d.turn} ({d.kind} {d.position})")
        for verdict in verdicts
        for d in verdict.differences
        if d.turn is not None
    ]
    turns = sum(verdict.turns for verdict in verdicts)
    text = f"{turns - len(places)} of {turns} turns are equal"
    return Finding("texts", "both", False, text, places) if places else None
