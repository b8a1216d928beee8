"""Templates with random alternatives: what all topics write their text with."""

import re
from dataclasses import dataclass, field

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


@dataclass
class Example:
    """One conversation: user turns, the answers to them, and what a scorer needs to judge them."""

    category: str
    turns: list
    answers: list
    reference: list
    keys: list = field(default_factory=list)  # further texts that identify a held-out question

    def held_out_keys(self):
        """Texts of which none may occur in the corpus when this is a held-out question."""
        return [self.turns[0], *self.keys]


def say(rng, template, **slots):
    """Resolve [a|b|c] at random, inner brackets first, then fill {slots}.

    say(rng, "[Hi|Hello], {name}", name="Ada") -> "Hi, Ada" or "Hello, Ada"
    """

    def choose(match):
        """One of the alternatives between two brackets."""
        return rng.choice(match.group(1).split("|"))

    while "[" in template:
        template = ALTERNATIVES.sub(choose, template)
    return template.format(**slots)


def sentence(text):
    """Upper-case the first letter."""
    return text[0].upper() + text[1:]


def with_article(noun):
    """a or an in front of an English noun."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def join_words(words):
    """Join as in a sentence: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
