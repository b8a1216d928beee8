"""Word problems with small whole numbers, worked step by step, ending in "The answer is N."."""

from data.mini_bench.phrasing import Example, say, sentence
from data.mini_bench.words import FRUIT, GOODS, PEOPLE, plural


def _things(rng):
    """A random thing in the plural."""
    return plural(rng.choice(GOODS + FRUIT))


# Each kind of problem draws -> (text, question, [(words, formula) of each step], result).
def _gain_and_loss(rng):
    """Something is added, then taken away."""
    a, b = rng.randint(11, 60), rng.randint(3, 30)
    c = rng.randint(2, a + b - 5)
    things, name, other = _things(rng), *rng.sample(PEOPLE, 2)
    text = say(
        rng,
        "{n} has {a} {t}. [{o} gives {n} {b} more {t}|{n} buys {b} more {t}|{n} finds {b} more "
        "{t}]. "
        "[Then|After that|Later] {n} [loses|gives away|sells] {c} [of them|{t}].",
        n=name, o=other, a=a, b=b, c=c, t=things,
    )  # fmt: skip
    ask = f"How many {things} does {name} have {rng.choice(['now', 'left', 'at the end'])}?"
    steps = [
        (f"{name} had {a} {things} and got {b} more", f"{a} + {b} = {a + b}"),
        (f"{c} {things} are gone", f"{a + b} - {c} = {a + b - c}"),
    ]
    return text, ask, steps, a + b - c


def _boxes(rng):
    """Several boxes of the same content and some loose things."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    c = rng.randint(2, 20)
    things, name = _things(rng), rng.choice(PEOPLE)
    box = rng.choice(["box", "bag", "basket", "jar"])
    text = say(
        rng,
        "{n} has {a} {x} with {b} {t} in each[.| one.] {n} [also has|finds|buys] {c} "
        "[more|extra|loose] {t}.",
        n=name, a=a, b=b, c=c, t=things, x=plural(box),
    )  # fmt: skip
    ask = say(rng, "How many {t} does {n} have [in total|altogether|in all]?", t=things, n=name)
    steps = [
        (f"{a} {plural(box)} with {b} {things} each hold", f"{a} * {b} = {a * b}"),
        (f"with the {c} other {things} there are", f"{a * b} + {c} = {a * b + c}"),
    ]
    return text, ask, steps, a * b + c


def _shopping(rng):
    """Two kinds of things at two prices."""
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    thing, other = rng.sample(GOODS + FRUIT, 2)
    d, name = rng.randint(2, 9), rng.choice(PEOPLE)
    text = say(
        rng,
        "[At the market|In the shop|At the fair] {n} buys {a} {t} for {b} coins each and {c} {o} "
        "for {d} coins each.",
        n=name, a=a, b=b, c=c, d=d, t=plural(thing), o=plural(other),
    )  # fmt: skip
    ask = say(rng, "How many coins does {n} [pay|spend] [in total|altogether|in all]?", n=name)
    steps = [
        (f"the {plural(thing)} cost", f"{a} * {b} = {a * b}"),
        (f"the {plural(other)} cost", f"{c} * {d} = {c * d}"),
        ("together that is", f"{a * b} + {c * d} = {a * b + c * d}"),
    ]
    return text, ask, steps, a * b + c * d


def _change(rng):
    """What is left of a purse after a purchase."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    purse = a * b + rng.randint(1, 95 - a * b if a * b < 60 else 15)
    thing, name = rng.choice(GOODS + FRUIT), rng.choice(PEOPLE)
    text = say(
        rng,
        "{n} [has|starts with|takes along] {p} coins [and buys|. {n} buys] {a} {t}. [Each {s} "
        "costs|One {s} costs] {b} coins.",
        n=name, p=purse, a=a, b=b, t=plural(thing), s=thing,
    ).replace(" .", ".")  # fmt: skip
    ask = say(rng, "How many coins [are left|remain|does {n} have left]?", n=name)
    steps = [
        (f"{a} {plural(thing)} at {b} coins cost", f"{a} * {b} = {a * b}"),
        (f"from {purse} coins there remain", f"{purse} - {a * b} = {purse - a * b}"),
    ]
    return text, ask, steps, purse - a * b


def _sharing(rng):
    """Two amounts put together and shared equally."""
    children, share = rng.randint(2, 9), rng.randint(2, 9)
    total = children * share
    a = rng.randint(1, total - 1)
    things, (name, other) = _things(rng), rng.sample(PEOPLE, 2)
    text = say(
        rng,
        "{n} has {a} {t} and {o} has {b} {t}. They [put them together and share them|share all of "
        "them] "
        "[equally|evenly] [among|between] {c} [children|friends|tables].",
        n=name, o=other, a=a, b=total - a, c=children, t=things,
    )  # fmt: skip
    ask = rng.choice([f"How many {things} does each get?", f"How many {things} is one share?"])
    steps = [
        (f"together they have all the {things}", f"{a} + {total - a} = {total}"),
        (f"{children} equal shares make", f"{total} / {children} = {share}"),
    ]
    return text, ask, steps, share


def _weeks(rng):
    """The same work for some time, then some more of it."""
    a, b, c = rng.randint(2, 9), rng.randint(2, 5), rng.randint(2, 20)
    job = rng.choice(
        ["paints|pictures", "reads|pages", "bakes|cakes", "writes|letters", "plants|trees"]
    )
    verb, things = job.split("|")
    name = rng.choice(PEOPLE)
    time = rng.choice(["day", "week", "hour"])
    text = say(
        rng,
        "{n} {v} {a} {t} [every|each] {x} for {b} {x}s. [In the next {x}|In the last {x}|After "
        "that] {n} {v} {c} [more|further] {t}.",
        n=name, v=verb, a=a, b=b, c=c, t=things, x=time,
    )  # fmt: skip
    ask = say(rng, "How many {t} [is that|are there] [in total|altogether|in all]?", t=things)
    steps = [
        (f"in {b} {time}s {name} {verb}", f"{a} * {b} = {a * b}"),
        (f"then come {c} {things} more", f"{a * b} + {c} = {a * b + c}"),
    ]
    return text, ask, steps, a * b + c


def _comparison(rng):
    """One owns more or fewer than the other; both together."""
    a, b = rng.randint(5, 40), rng.randint(2, 20)
    things, (name, other) = _things(rng), rng.sample(PEOPLE, 2)
    more = rng.random() < 0.5 or b >= a
    second = a + b if more else a - b
    sign, word = ("+", "more") if more else ("-", "fewer")
    text = say(
        rng,
        "{n} [has|owns|collects] {a} {t}. {o} [has|owns|collects] {b} {w} {t} than {n}.",
        n=name, o=other, a=a, b=b, t=things, w=word,
    )  # fmt: skip
    ask = rng.choice(
        [f"How many {things} do they have together?", f"How many {things} do both have in all?"]
    )
    steps = [
        (f"{other} has {b} {word} than {name}", f"{a} {sign} {b} = {second}"),
        (f"{name} and {other} together have", f"{a} + {second} = {a + second}"),
    ]
    return text, ask, steps, a + second


def _travel(rng):
    """A distance from speed and time, and what is still to go."""
    speed, hours = rng.randint(3, 9), rng.randint(2, 9)
    rest = rng.randint(2, 30)
    name = rng.choice(PEOPLE)
    walk, walks = rng.choice(
        [("hike", "hikes"), ("ride", "rides"), ("sail", "sails"), ("row", "rows")]
    )
    text = say(
        rng,
        "{n} {w} {s} miles [an|every|each] hour for {h} hours. [Then there are still|After that "
        "there remain] {r} miles to go.",
        n=name, w=walks, s=speed, h=hours, r=rest,
    )  # fmt: skip
    ask = say(rng, "How [long|many miles long] is the whole [trip|{w}]?", w=walk)
    steps = [
        (f"in {hours} hours {name} {walks}", f"{speed} * {hours} = {speed * hours}"),
        (
            f"with the {rest} miles to go it is",
            f"{speed * hours} + {rest} = {speed * hours + rest}",
        ),
    ]
    return text, ask, steps, speed * hours + rest


KINDS = [
    _gain_and_loss,
    _boxes,
    _shopping,
    _change,
    _sharing,
    _weeks,
    _comparison,
    _travel,
]
OPENERS = ["First", "To begin", "At first", "We start:"]
MIDDLES = ["Then", "Next", "After that", "Now"]
CLOSERS = ["So", "Finally", "Therefore", "In the end"]


def explain(rng, steps, answer):
    """The worked solution: one sentence a step, then the result."""
    style = rng.randrange(3)
    lines = []
    for i, (words, formula) in enumerate(steps):
        if style == 0:
            lines.append(f"Step {i + 1}: {sentence(words)}: {formula}.")
        elif style == 1:
            opener = rng.choice(OPENERS if i == 0 else CLOSERS if i + 1 == len(steps) else MIDDLES)
            lines.append(f"{opener} {words}: {formula}.")
        else:
            lines.append(f"{sentence(words)}: {formula}.")
    return ("\n" if style == 0 else " ").join([*lines, f"The answer is {answer}."])


def make(rng):
    """One word problem; the reference is the number."""
    text, ask, steps, answer = rng.choice(KINDS)(rng)
    hint = rng.choice(["", "", " Think step by step.", " Show your work.", " Explain each step."])
    return Example(
        "math_reasoning", [f"{text} {ask}{hint}"], [explain(rng, steps, answer)], [str(answer)]
    )
