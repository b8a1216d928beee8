"""A few short passages and a question; the answer quotes from one passage and names it."""

from data.mini_bench.phrasing import Example, say
from data.mini_bench.words import MONTHS, SURNAMES, TOWNS, full_name

PLACE_KINDS = ["Museum", "Hotel", "Library", "Theatre", "College", "Bakery", "Garden", "Mill"]
# name, ways to ask (about {e}), ways to tell, how to draw a value
FACTS = {
    "founder": (
        ["Who founded the {e}?", "Who was the founder of the {e}?"],
        [
            "It was founded by {v}.",
            "Its founder was {v}.",
            "{v} founded it with very little money.",
        ],
        full_name,
    ),
    "year": (
        ["When did the {e} open?", "In which year was the {e} opened?"],
        [
            "It opened in {v}.",
            "It was opened in the year {v}.",
            "Its doors have been open since {v}.",
        ],
        lambda rng: str(rng.randint(1801, 1999)),
    ),
    "town": (
        ["In which town is the {e}?", "Where is the {e}?"],
        [
            "It is in the town of {v}.",
            "It stands in {v}, close to the river.",
            "You find it in {v}.",
        ],
        lambda rng: rng.choice(TOWNS),
    ),
    "staff": (
        ["How many people work at the {e}?", "How many workers does the {e} have?"],
        ["{v} people work there.", "It has {v} workers.", "It gives work to {v} people."],
        lambda rng: str(rng.randint(11, 99)),
    ),
    "closed": (
        ["In which month is the {e} closed?", "When in the year does the {e} close?"],
        [
            "It is closed in {v}.",
            "Every {v} it is closed for repairs.",
            "In {v} nobody works there.",
        ],
        lambda rng: rng.choice(MONTHS),
    ),
    "treasure": (
        ["What is the {e} famous for?", "What is the {e} known for?"],
        ["It is famous for its {v}.", "Visitors come for the {v}.", "It is known for the {v}."],
        lambda rng: say(
            rng,
            "[golden|wooden|huge|old|painted|secret] "
            "[clock|staircase|piano|ceiling|oven|fountain|map|door]",
        ),
    ),
}
FILLERS = [
    "The [roof|floor|front door|cellar] was [rebuilt|repaired|painted] [twice|some years ago|after "
    "a storm].",
    "[Many|Few] [guests|visitors|students] [know|forget] [that|this], [although|but] [it is no "
    "secret|the signs are clear].",
    "The [rooms|halls|walls] are [bright|dark|cold|quiet] and [large|small|clean].",
    "[On Sundays|In the evening|In winter] there is [music|free soup|a guided tour|nothing to do].",
]
ORDERS = [
    "{passages}\n\nAnswer with the help of the passages: {question}",
    "Use the passages to answer the question.\n\n{passages}\n\nQuestion: {question}",
    "{question}\n\n{passages}",
    "Read this:\n{passages}\n\n{question} Name the passage.",
]


def _passage(rng, entity):
    """Draw facts about an entity -> (text, {fact: (sentence, value)})."""
    told = {}
    for name in rng.sample(list(FACTS), rng.choice([3, 4])):
        _, tells, draw = FACTS[name]
        value = draw(rng)
        told[name] = (rng.choice(tells).format(v=value), value)
    lines = [text for text, _ in told.values()]
    if rng.random() < 0.7:
        lines.insert(rng.randint(0, len(lines)), say(rng, rng.choice(FILLERS)))
    opener = say(
        rng, "[This is about the {e}.|The {e} is [well known|old|a nice place].]", e=entity
    )
    return " ".join([opener, *lines]), told


def make(rng):
    """Passages with a question about one of them; the reference is the value asked for."""
    names = rng.sample(SURNAMES, 3)
    entities = [f"{name} {rng.choice(PLACE_KINDS)}" for name in names[: rng.choice([2, 3, 3])]]
    drawn = [_passage(rng, entity) for entity in entities]
    index = rng.randrange(len(entities))
    entity, told = entities[index], drawn[index][1]
    fact, *extras = rng.sample(list(told), rng.choice([2, 3]))
    passages = "\n".join(f"[{i + 1}] {text}" for i, (text, _) in enumerate(drawn))
    question = rng.choice(FACTS[fact][0]).format(e=entity)
    quoted, value = told[fact]
    answer = say(
        rng,
        "[According to passage|The answer is in passage|See passage|This is said in passage|I "
        "found it in passage] "
        "{n}[, about the {e}|]: {q}",
        n=index + 1, e=entity, q=quoted,
    )  # fmt: skip
    more = say(rng, "[The same passage says|We also read there|It adds|The text goes on]: ")
    answer += f" {more}{' '.join(told[extra][0] for extra in extras)}"
    order = rng.choice(ORDERS).replace("{passages}", passages).replace("{question}", question)
    return Example("rag", [order], [answer], [value, f"passage {index + 1}"])
