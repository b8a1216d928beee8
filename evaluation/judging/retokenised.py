"""Evidence that stands although a text had to be tokenised anew.

The ids that a text is tokenised to may not be those that were committed. Up to the first gap above
the bound every token is the target's best within rounding, so greedy decoding committed these very
ids (had it committed others, they would have been the best there). At that place the committed
token is one of those that the rest of the text can begin with. If even the best of them lies far
below the target's best, no tokenisation explains the answer.
"""

from functools import lru_cache


@lru_cache(maxsize=2)
def token_texts(tokenizer, vocab_size):
    """The text that each id adds after another token; None for special ids and broken UTF-8."""
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    start = len(tokenizer.decode(anchor))
    size = min(vocab_size, len(tokenizer))
    decoded = tokenizer.batch_decode([anchor + [i] for i in range(size)])
    special = set(tokenizer.all_special_ids)
    texts = [text[start:] for text in decoded]
    return [None if i in special or "\ufffd" in text else text for i, text in enumerate(texts)] + [
        None
    ] * (vocab_size - size)


def could_begin(text, rest, at_start):
    """Whether a token's text may be the next part of an answer whose remaining text is `rest`.

    at_start: answers are stripped, so their first token may begin with space; so may the last one
    end, or go on where a stop string was cut off.

    >>> could_begin("wor", "world", False), could_begin("word", "world", False)
    (True, False)
    """
    if at_start and rest.startswith(text.lstrip()):
        return True
    return rest.startswith(text) or text.startswith(rest)


def least_gap(target, subject, prompt, ids, position, eos_ids):
    """The least gap, in logits, of any token that could stand at `position` of re-tokenised ids.

    Tokens of unknown text (special ones, parts of a character) count as possible, end tokens do
    not: the answer goes on.
    """
    from evaluation.judging.readings import next_logits
    from model.common.loop.penalties import forced

    tokenizer = subject.tokenizer
    logits = next_logits(target, prompt + ids[:position]).unsqueeze(0)
    scores = forced(subject.penalties, logits, prompt, ids, position)[0].double()
    rest = tokenizer.decode(ids)[len(tokenizer.decode(ids[:position])) :]
    possible = [
        i
        for i, text in enumerate(token_texts(tokenizer, target.vocab_size))
        if i not in eos_ids and (text is None or could_begin(text, rest, position == 0))
    ]
    least = scores[possible].max() if possible else scores.min()
    return float(scores.max() - least)
