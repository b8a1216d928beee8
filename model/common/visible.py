"""Text from files of others as a terminal can be given it: what would act there is shown."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t"
UNSEEN = frozenset(("Cc", "Cf", "Co", "Cs", "Zl", "Zp"))  # categories that draw nothing, or act


def visible(text: str, kept: str = KEPT) -> str:
    """A text whose control, format and surrogate characters are escapes; newline and tab stay.

    >>> visible("a\\x1b[31m\\u202eb\\n")
    'a\\\\x1b[31m\\\\u202eb\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        escape(c) if c not in kept and unicodedata.category(c) in UNSEEN else c for c in text
    )


def escape(character: str) -> str:
    """'\\x1b' of an escape character, as Python writes it."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class Visible:
    """A text stream that is given visible() of all that is written to it.

    kept: control characters that pass.
    """

    def __init__(self, stream, kept: str = KEPT):
        self.stream, self.kept = stream, kept

    def write(self, text: str) -> int:
        return self.stream.write(visible(text, self.kept))

    def __getattr__(self, name):
        return getattr(self.stream, name)
