"""Answers that do not end as the loop ends them, where somebody has cut them.

An answer ends with an end token, at a stop string, or at its limit of tokens. The tokenizer is not
asked for its end tokens: a token that goes on in one answer ends no other.
"""


def problems(answers):
    """A line about the answers of an AnswerFile that are cut."""
    cut = [*cut_at_limits(answers), *cut_at_ends(answers)]
    if cut:
        more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        yield f"cut answers: question {cut[0][0]}: {cut[0][1]}{more}"


def turns_of(answers):
    """(question id, prompt tokens, ids, finish reason) of every turn that says them."""
    for question in answers.questions.values():
        for choice in question.choices:
            if None not in (choice.output_ids, choice.prompt_tokens, choice.finish_reason):
                turns = zip(choice.prompt_tokens, choice.output_ids, choice.finish_reason)
                yield from ((question.question_id, *turn) for turn in turns)


def cut_at_limits(answers):
    """Answers past the limit, or ended by a limit that is neither it nor the longest context."""
    limit = answers.meta["shared"].get("max_new_tokens")
    turns = list(turns_of(answers))
    longest = max((prompt + len(ids) for _, prompt, ids, _ in turns), default=0)
    for question_id, prompt, ids, reason in turns:
        if limit is None:
            return
        if len(ids) > limit:
            yield question_id, f"{len(ids)} tokens, the limit is {limit}"
        elif reason == "length" and len(ids) < limit and prompt + len(ids) < longest:
            yield question_id, f"ended at {len(ids)} tokens by a limit of {limit}"


def cut_at_ends(answers):
    """Answers whose last token is no end token: it stands within another answer.

    Of runs whose answers end with end tokens alone, without stop strings of a template or a flag.
    """
    shared = answers.meta["shared"]
    others = ("stop", "stop_token_ids", "ignore_eos")
    if shared.get("template") != "tokenizer" or any(shared.get(name) for name in others):
        return
    turns = [turn for turn in turns_of(answers) if turn[2]]
    within = {token for _, _, ids, _ in turns for token in ids[:-1]}
    for question_id, _, ids, reason in turns:
        if reason == "stop" and ids[-1] in within:
            yield question_id, f"ends with token {ids[-1]}, which ends no other answer"
