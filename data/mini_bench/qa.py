"""Closed-book questions over the invented world of data.mini_bench.knowledge."""

from data.mini_bench import knowledge
from data.mini_bench.phrasing import Example, say, sentence

OPENERS = ["", "", "", "Yes, I know this one. ", "Good question. ", "Gladly. ", "Certainly. "]
CLOSERS = [
    "",
    "",
    "",
    " I hope this helps.",
    " Ask me if you want to know more.",
    " That is all I know about it.",
    " This is well known there.",
]
LINKS = ["", "", "Also, ", "Besides, ", "Moreover, ", "In addition, "]
NOUNS = {"country": "country", "inventor": "inventor", "animal": "animal", "book": "novel"}


def facts_as_text(rng, kind, entity, attributes):
    """Several facts about one entity as sentences; the first one names the entity."""
    parts = []
    for i, attribute in enumerate(attributes):
        text = knowledge.tell(rng, kind, entity, attribute)
        while i == 0 and entity not in text:
            text = knowledge.tell(rng, kind, entity, attribute)
        link = rng.choice(LINKS) if i else ""
        if link and text.startswith(("The ", "Its ", "It ", "By ")) and kind != "book":
            text = text[0].lower() + text[1:]
        elif link and kind == "book":
            link = ""
        parts.append(f"{link}{text}.")
    return " ".join(parts)


def _about_one(rng, kind):
    """Ask for two facts of one entity, or for all that is known."""
    entity = rng.choice(list(knowledge.WORLD[kind]))
    attributes = list(knowledge.ATTRIBUTES[kind])
    rng.shuffle(attributes)
    if rng.random() < 0.3:
        attributes = attributes[: rng.choice([3, 4])]
        the = "the " if kind == "animal" else ""
        question = say(
            rng,
            "[Tell me about {t}{e}|What do you know about {t}{e}|Write [some|a few] facts about "
            "{t}{e}"
            "|Describe the {k} {e}|Who or what is {t}{e}], [in {n} sentences|naming {n} facts].",
            t=the, e=entity, k=NOUNS[kind], n=len(attributes),
        )  # fmt: skip
        return question, facts_as_text(rng, kind, entity, attributes), []
    attributes = attributes[:2]
    first = knowledge.ask(rng, entity, attributes[0])
    second = knowledge.ask(rng, entity, attributes[1])
    question = rng.choice(
        [f"{sentence(first)}, and {second}?", f"{sentence(first)}? And {second}?",
         f"Please tell me {first[0].lower()}{first[1:]}, and {second}.",
         f"Two questions: {first}? {sentence(second)}?"]
    )  # fmt: skip
    values = [knowledge.WORLD[kind][entity][a.name] for a in attributes]
    return question, facts_as_text(rng, kind, entity, attributes), values


def _about_two(rng, kind):
    """Ask for the same or different facts of two entities of a kind."""
    one, two = rng.sample(list(knowledge.WORLD[kind]), 2)
    first, second = (rng.choice(knowledge.ATTRIBUTES[kind]) for _ in range(2))
    question = rng.choice(
        ["{a}? And {b}?", "{a}, and {b}?", "I have two questions. {a}? {c}?", "Quiz: {b}? {a}?"]
    )
    asked = [(one, first), (two, second)]
    if question.startswith("Quiz"):
        asked = [(two, second), (one, first)]
    a, b = knowledge.ask(rng, one, first), knowledge.ask(rng, two, second)
    if question.startswith("Quiz"):
        question = question.format(a=sentence(a), b=b)
    else:
        question = question.format(a=sentence(a), b=b, c=sentence(b))
    answer = " ".join(facts_as_text(rng, kind, entity, [attr]) for entity, attr in asked)
    return question, answer, [knowledge.WORLD[kind][entity][attr.name] for entity, attr in asked]


def make(rng):
    """A question with its answer; the reference lists the values that the answer must contain."""
    kind = rng.choice(knowledge.KINDS)
    question, answer, values = (_about_one if rng.random() < 0.65 else _about_two)(rng, kind)
    answer = rng.choice(OPENERS) + answer + rng.choice(CLOSERS)
    return Example("qa", [question], [answer], values)
