"""A judgement in lines of text."""

from evaluation.judging.verdicts import EXACT


def number(value):
    """Three digits."""
    return f"{value:.3g}"


def token_place(worst):
    """'turn 0 token 17: gap 0.0625 (1 ulp, probability 0.013), bound 0.25'."""
    return (
        f"turn {worst['turn']} token {worst['position']}: gap {number(worst['gap'])}"
        f" ({number(worst['ulps'])} ulps, probability {number(worst['probability'])}),"
        f" bound {number(worst['bound'])}"
    )


def noise_line(noise):
    """What the bound is made of."""
    readings = ", ".join(f"{name} {number(most)}" for name, most in noise["by_reading"].items())
    return (
        f"noise: {noise['dtype']}, single rows, chains and trees of 1+{noise['width']} rows against"
        f" a prefill: {noise['positions']} positions, {noise['samples']} margins of the two best"
        f" tokens: median {number(noise['median'])}, maximum {number(noise['maximum'])}"
        f" ({readings}); transformers' own forward {number(noise['own'])}; bound"
        f" {noise['factor']:g} x maximum = {number(noise['bound'])}, at least"
        f" {noise['floor_ulps']:g} ulps"
    )


def control_line(control):
    """How often the method and the control differ."""
    low, high = control["interval"]
    return (
        f"control: {control['questions']} questions: the method differs on"
        f" {control['method_differ']}, the baseline, read 1+{control['width']} rows at a time, on"
        f" {control['control_differ']}; difference {control['difference']:+.3f}"
        f" [{low:+.3f}, {high:+.3f}] ({control['interval_of']})"
    )


def proof_line(proof):
    """What the rerun showed."""
    if proof["identical"]:
        return (
            f"proof: {proof['questions']} differing questions answered again in {proof['dtype']}:"
            " the method's ids are vanilla's"
            + ("" if proof["off"] else "; the code is exact there")
            + f"; {proof['own_checked']} tokens held to transformers' own forward"
        )
    listed = ", ".join(map(str, proof["differing"][:5]))
    return (
        f"proof: FAILED: answered again in {proof['dtype']}, {len(proof['differing'])} of"
        f" {proof['questions']} questions differ from vanilla's ({listed}); {proof['command']}"
    )


def question_line(question):
    """One question's verdict and evidence."""
    parts = [f"question {question['question_id']} ({question['category']}): {question['verdict']}"]
    parting = question["parting"]
    if parting:
        parts.append(
            f"parts at turn {parting['turn']} token {parting['position']}: gap"
            f" {number(parting['gap'])}, of the baseline's token {number(parting['baseline_gap'])}"
        )
    if question["worst"]:
        parts.append(f"largest: {token_place(question['worst'])}")
    return "; ".join(parts + question["reasons"])


def judgement_lines(label, judgement, max_print):
    """All lines of a file's judgement, the gravest questions first."""
    questions = judgement["questions"]
    tokens = sum(question["tokens"] for question in questions)
    yield (
        f"{judgement['verdict']}: {label}: {judgement['questions_exact']} questions equal,"
        f" {len(questions)} judged ({tokens} tokens)"
    )
    for reason in judgement["reasons"]:
        yield f"  {reason}"
    if judgement["noise"]:
        yield f"  {noise_line(judgement['noise'])}"
    if judgement["control"]:
        yield f"  {control_line(judgement['control'])}"
    if judgement["proof"]:
        yield f"  {proof_line(judgement['proof'])}"
    for note in judgement["notes"]:
        yield f"  note: {note}"
    shown = sorted(
        (q for q in questions if q["verdict"] != EXACT),
        key=lambda q: q["worst"] is not None and -q["worst"]["gap"] / (q["worst"]["bound"] or 1),
    )
    for question in shown[:max_print]:
        yield f"  {question_line(question)}"
    if len(shown) > max_print:
        yield f"  ... and {len(shown) - max_print} more questions"
