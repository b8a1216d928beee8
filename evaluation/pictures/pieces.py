"""Text of answers token by token, as it can be shown."""

import functools

PARTIAL = "\ufffd"  # what a tokenizer gives for bytes that are no whole character
LONGEST = 8  # tokens that are waited for until they make a character


class Pieces:
    """The text that each token of an answer adds, by a tokenizer of transformers."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.decode = functools.lru_cache(maxsize=1 << 17)(self._decode)

    def _decode(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def of(self, ids):
        """[len(ids)] texts that make the answer's, special tokens included.

        A token's text depends on the one before it (a space in front of a word), so both are
        decoded together. Bytes that are no character yet are empty, and stand with the token that
        completes it.
        """
        pieces, begin, shown = [], 0, ""
        for place in range(len(ids)):
            text = self.decode(tuple(ids[begin : place + 1]))
            waits = text.endswith(PARTIAL) and place - begin < LONGEST and place < len(ids) - 1
            pieces.append("" if waits else text[len(shown) :])
            if not waits:
                begin, shown = place, self.decode((ids[place],))
        return pieces
