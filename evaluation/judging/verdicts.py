"""The rule that turns evidence into verdicts; no model, no printing.

EXACT           the ids are the baseline's
TIES ONLY       they are not, but no token's gap is above the bound of rounding
SUSPECT         a gap above the bound and up to MULTIPLE times it, or a whole file that differs from
                the baseline significantly more often than the baseline does from itself
CANNOT JUDGE    the target's own readings of one prefix differ by more than rounding can
                (noise.py), so that no gap says anything
BUG             a gap above that multiple, tokens after the answer's end, an answer that ends early
                or runs past its limit, a missing answer, a float32 rerun that is not identical or
                not the target's own
LOSSY BY DESIGN the ids differ and the meta says that the acceptance rule may change them
"""

from dataclasses import asdict, dataclass, field

MULTIPLE = 4.0
FACTOR, FLOOR_ULPS = 2.0, 2.0  # of the bound: times the noise, and its least; see noise.py
EXACT, LOSSY, TIES, SUSPECT, BUG = "EXACT", "LOSSY BY DESIGN", "TIES ONLY", "SUSPECT", "BUG"
CANNOT = "CANNOT JUDGE"
ORDER = (EXACT, LOSSY, TIES, SUSPECT, CANNOT, BUG)
STATUS = {EXACT: 0, LOSSY: 0, TIES: 0, SUSPECT: 3, CANNOT: 3, BUG: 1}


def worst(verdicts):
    """The gravest of some verdicts."""
    return max(verdicts, key=ORDER.index, default=EXACT)


@dataclass
class Worst:
    """The token of a question whose gap is the largest multiple of its bound."""

    gap: float  # logits
    ulps: float
    probability: float  # best - own
    bound: float  # logits
    choice: int
    turn: int
    position: int
    token: int
    best: int

    @property
    def ratio(self):
        """Gap over bound; a gap of 0 is within a bound of 0."""
        if self.gap == 0:
            return 0.0
        return self.gap / self.bound if self.bound else float("inf")


@dataclass
class QuestionJudgement:
    """What was found about one question of a file, and its verdict."""

    question_id: object
    category: str
    equal: bool
    verdict: str = EXACT
    reasons: list = field(default_factory=list)
    tokens: int = 0  # judged
    worst: Worst | None = None
    parting: dict | None = None  # where the two answers part: turn, position, both gaps, bound
    retokenised: bool = False
    unexplained: dict | None = None  # of re-tokenised text: least gap of any tokenisation

    def record(self):
        """For the report."""
        return asdict(self)


def worst_token(turns, noise):
    """The Worst over TurnGaps, None where there is no token."""
    best = None
    for turn in turns:
        for position, gap in enumerate(turn.gaps):
            bound = noise.bound_at(turn.ulp_size[position])
            ratio = (gap / bound if bound else float("inf")) if gap else 0.0
            if best is None or ratio > best[0]:
                best = ratio, turn, position, bound
    if best is None:
        return None
    _, turn, position, bound = best
    return Worst(
        turn.gaps[position],
        turn.ulps[position],
        turn.probabilities[position],
        bound,
        turn.text.choice,
        turn.text.turn,
        position,
        turn.text.ids[position],
        turn.best[position],
    )


def judge_question(found, faults, lossy, noise=None):
    """Fill in the verdict and reasons of a QuestionJudgement from its evidence.

    faults: what no rounding does, a line each; lossy: the file's acceptance rule may change ids;
    noise: the Noise that gave the bounds, None where no gap was measured.
    """
    grave = []
    if faults:
        grave.append(BUG)
        found.reasons += faults
    gap = found.worst and found.worst.ratio
    if lossy and not found.equal:
        grave.append(LOSSY)
    elif gap is not None and noise is not None and noise.odd:
        grave.append(CANNOT)
    elif gap is not None and gap > 1:
        grave.append(judge_gap(found))
    if not grave:
        grave.append(EXACT if found.equal else TIES)
    found.verdict = worst(grave)


def judge_gap(found):
    """SUSPECT or BUG for a question with a gap above its bound."""
    token = found.worst
    found.reasons.append(f"{token.ratio:.3g} times the bound")
    if found.equal:
        found.reasons.append("the baseline has the same ids: neither is this target's output")
    if found.retokenised:
        least = found.unexplained
        if least and least["gap"] > MULTIPLE * least["bound"]:
            found.reasons.append(
                f"turn {least['turn']} token {least['position']}: no token that the text allows"
                f" has a gap below {least['gap']:.3g}, so it is not the re-tokenising"
            )
            return BUG
        found.reasons.append("may be the re-tokenising of the text")
        return SUSPECT
    return BUG if token.ratio > MULTIPLE else SUSPECT


def end_faults(cut, length, limit):
    """Faults of how a turn of `length` ids ends; cut: (kept ids, reason) by the stop rules.

    limit: most new tokens, None where unknown; then nothing is said of an answer that goes on.
    """
    kept, reason = cut
    if kept < length and reason == "length":
        return [f"{length} tokens, but the limit is {limit}"]
    if kept < length:
        return [f"{length - kept} tokens after the answer's end (token {kept - 1})"]
    if not reason and limit is not None:
        return [f"ends after {length} tokens without an end token, a stop string or its limit"]
    return []


def odd_reading(odd):
    """What a change that is no rounding says of the readings."""
    return (
        f"the target's own readings of one prefix differ by {odd['change']:.3g} logits"
        f" ({odd['ulps']:.3g} ulps; rounding: at most {odd['limit']:.3g}): {odd['reading']} against"
        f" a prefill, {odd['where']} token {odd['position']}"
    )


def file_verdict(questions, noise, control, proof):
    """(verdict, reasons) of a file: the worst of its questions, its control and its proof."""
    grave, reasons = [question.verdict for question in questions], []
    if CANNOT in grave:
        reasons.append(odd_reading(noise.odd))
    if control and control["odd"]:
        grave.append(CANNOT)
        odd = control["odd"]
        reasons.append(
            f"the target's own readings of one prefix differ by {odd['change']:.3g} logits: the"
            f" baseline's answer, read 1+{control['width']} rows at a time, {odd['where']} token"
            f" {odd['position']}"
        )
    elif control and control["significant"] and worst(grave) == TIES:
        grave.append(SUSPECT)
        reasons.append(
            f"all gaps are within the bound, but {control['method_differ']} of"
            f" {control['questions']} questions differ where the baseline, read"
            f" 1+{control['width']} rows at a time, differs on {control['control_differ']}"
        )
    if proof and not proof["identical"]:
        grave.append(BUG)
        listed = ", ".join(map(str, proof["differing"][:5]))
        reasons.append(f"the {proof['dtype']} rerun is not the baseline's on questions {listed}")
    if proof and proof["off"]:
        grave.append(BUG)
        off = proof["off"]
        reasons.append(
            f"the {proof['dtype']} rerun is not the target's output: {off['where']} token"
            f" {off['position']} is {off['gap']:.3g} logits below the best of transformers' own"
            " forward"
        )
    return worst(grave), reasons
