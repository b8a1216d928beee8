"""Two-turn conversations of the topics reasoning, math and extraction."""

import json

from data.mini_bench.phrasing import Example, join_words, say, sentence
from data.mini_bench.words import DAYS, GOODS, MONTHS, PEOPLE, TOWNS, full_name

ORDERINGS = [
    ("older", "oldest", "youngest", "age"),
    ("taller", "tallest", "shortest", "height"),
    ("faster", "fastest", "slowest", "speed"),
    ("richer", "richest", "poorest", "wealth"),
    ("stronger", "strongest", "weakest", "strength"),
]


def reasoning(rng):
    """Order three or four people from pairwise hints; references: the most and the least."""
    more, most, least, what = rng.choice(ORDERINGS)
    people = rng.sample(PEOPLE, rng.choice([3, 3, 4]))
    hints = [f"{a} is {more} than {b}." for a, b in zip(people, people[1:])]
    told = hints[:]
    rng.shuffle(told)
    order = say(
        rng,
        "{h} [Who is the {m}?|Who of them is the {m}? Explain.|Tell me who is the {m} and why.]",
        h=" ".join(told), m=most,
    )  # fmt: skip
    chain = join_words([hint[:-1] for hint in hints])
    first = say(
        rng,
        "[We know that|The hints say that|From the text,] {c}. [So|Therefore|This means that] {a} "
        "is {r} than all others, "
        "[and|so] {a} is the {m}.",
        c=chain, a=people[0], r=more, m=most,
    )  # fmt: skip
    ranked = say(rng, "[From {m} to {l}: {x}|The order is {x}|By {w} it is {x}].",
                 m=most, l=least, w=what, x=", ".join(people))  # fmt: skip
    kind = rng.randrange(3)
    if kind == 0:
        second = say(
            rng, "[And who is the {l}?|Who is the {l}, then?|What about the {l}?]", l=least
        )
        answer = say(rng, "[Nobody is behind|No one comes after|All others are {r} than] {z}, so "
                          "{z} is the {l}. {x}",
                     z=people[-1], l=least, r=more, x=ranked)  # fmt: skip
    elif kind == 1:
        second = say(
            rng, "[Now list all of them.|Put them in order.|Give me the whole order as a list.]"
        )
        answer = "\n".join(f"{i + 1}. {name}" for i, name in enumerate(people))
        answer = f"From {most} to {least}:\n{answer}\nThat is the whole order."
    else:
        i, j = sorted(rng.sample(range(len(people)), 2))
        asked = [people[i], people[j]]
        rng.shuffle(asked)
        second = f"Is {asked[0]} {more} than {asked[1]}?"
        truth = "Yes" if asked[0] == people[i] else "No"
        answer = f"{truth}, {people[i]} is {more} than {people[j]}. {ranked}"
    return Example("reasoning", [order, second], [first, answer], [people[0], people[-1]])


def _rectangle(rng):
    """Area, then perimeter -> (turns, answers, results)."""
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    thing = rng.choice(["garden", "room", "field", "carpet", "table", "window"])
    order = say(rng, "A {t} is {a} metres long and {b} metres wide. [What is its area?|How large "
                     "is its area?]",
                t=thing, a=a, b=b)  # fmt: skip
    first = say(rng, "[The area is length times width|We multiply the sides|For the area we take "
                     "length times width]: "
                "{a} * {b} = {c}. [The {t} has|So the {t} has] an area of {c} square metres.",
                t=thing, a=a, b=b, c=a * b)  # fmt: skip
    second = say(
        rng,
        "[And what is its perimeter?|How long is the way around it?|Now the perimeter, please.]",
    )
    answer = say(rng, "[The perimeter is twice the sum of the sides|We add the sides and double "
                      "the sum]: {a} + {b} = {s} "
                 "and 2 * {s} = {p}. [The perimeter is|So it is] {p} "
                 "metres.", a=a, b=b, s=a + b, p=2 * (a + b))  # fmt: skip
    return [order, second], [first, answer], [a * b, 2 * (a + b)]


def _calculate(rng):
    """A product and a sum, then a little more or less -> (turns, answers, results)."""
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 30)
    d = rng.randint(2, 15)
    order = say(
        rng, "[What is|Compute|Calculate|Please work out] {a} * {b} + {c}[?|.]", a=a, b=b, c=c
    )
    first = say(rng, "[First|To begin,] we multiply: {a} * {b} = {m}. [Then|After that|Next] we "
                     "add {c}: {m} + {c} = {r}. "
                "The result is {r}.", a=a, b=b, c=c, m=a * b, r=a * b + c)  # fmt: skip
    result = a * b + c
    if rng.random() < 0.5 or result <= d:
        second = say(rng, "[Add {d} to that.|And with {d} more?|Now {d} more.]", d=d)
        after, sign = result + d, "+"
    else:
        second = say(rng, "[Take {d} away from that.|And {d} less?|Now {d} less.]", d=d)
        after, sign = result - d, "-"
    answer = say(rng, "[We start from|The last result was|Before we had] {r}: {r} {s} {d} = {x}. "
                      "The new result is {x}.",
                 r=result, s=sign, d=d, x=after)  # fmt: skip
    return [order, second], [first, answer], [result, after]


def _series(rng):
    """Continue an arithmetic series, twice -> (turns, answers, results)."""
    start, step = rng.randint(1, 20), rng.randint(2, 9)
    terms = [start + step * i for i in range(7)]
    order = say(rng, "[Which number comes next|How does this continue|What is the next "
                     "number]: {x}?",
                x=", ".join(map(str, terms[:4])))  # fmt: skip
    first = say(rng, "[Each number is {d} more than the one before|The numbers grow by {d}|The "
                     "step is {d}]: "
                "{a} + {d} = {b}. The next number "
                "is {b}.", d=step, a=terms[3], b=terms[4])  # fmt: skip
    second = say(rng, "[And the two after it?|Give me two more.|How does it go on?]")
    answer = say(rng, "[Again we add {d}|We go on with {d}|The step stays {d}]: {a} + {d} = {b} "
                      "and {b} + {d} = {c}. "
                 "[The next two are|So we get] {b} "
                 "and {c}.", d=step, a=terms[4], b=terms[5], c=terms[6])  # fmt: skip
    return [order, second], [first, answer], terms[4:6]


def math(rng):
    """A small computation and one that builds on its result; references: both results."""
    turns, answers, results = rng.choice([_rectangle, _calculate, _series])(rng)
    return Example("math", turns, answers, [str(result) for result in results])


NOTES = [
    "{n} from {t} ordered {k} {g} on {d}",
    "on {d} we sent {k} {g} to {n} in {t}",
    "{n}, who lives in {t}, wants {k} {g} by {d}",
    "please bring {k} {g} to {t} on {d}, {n} is waiting",
]
FORMS = ["JSON", "a list", "a table"]


def _write(form, rows):
    """Rows of equal keys as JSON, a list or a table."""
    if form == "JSON":
        return "```json\n" + json.dumps(rows) + "\n```"
    if form == "a list":
        return "\n".join("- " + ", ".join(map(str, row.values())) for row in rows)
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *[list(row.values()) for row in rows]]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def extraction(rng):
    """Pull names, towns and amounts out of notes; the references are the names."""
    rows, notes = [], []
    for town in rng.sample(TOWNS, rng.choice([2, 2, 3])):
        count = rng.randint(2, 90)
        row = {"name": full_name(rng), "town": town, "count": count}
        row["item"] = rng.choice(GOODS) + "s"
        if rng.random() < 0.5:
            when = rng.choice(DAYS)
        else:
            when = f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
        note = rng.choice(NOTES).format(n=row["name"], t=town, k=count, g=row["item"], d=when)
        notes.append(sentence(note))
        rows.append(row)
    keys = ["name", *rng.sample(["town", "count", "item"], 2)]
    form = rng.choice(FORMS)
    order = say(rng, "[Extract|Find|Collect] {k} from these notes as {f}: {x}.",
                k=join_words(keys), f=form, x=". ".join(notes))  # fmt: skip
    short = [{key: row[key] for key in keys} for row in rows]
    first = _write(form, short)
    names = [row["name"] for row in rows]
    kind = rng.randrange(3)
    if kind == 0:
        other = rng.choice([f for f in FORMS if f != form])
        second, answer = f"Now as {other}, please.", _write(other, short)
    elif kind == 1:
        best = max(rows, key=lambda row: row["count"])
        second = say(
            rng, "[Who has the highest count?|Which order is the largest?|Who wants the most?]"
        )
        answer = say(rng, "[It is|The largest order is from|The highest count belongs to] {n} with "
                          "{c} {i}.",
                     n=best["name"], c=best["count"], i=best["item"])  # fmt: skip
    else:
        second = say(rng, "[Only the names, please.|Which names are there?|List just the names.]")
        answer = say(
            rng,
            "[The names are|There are {n} names:|I found] {x}.",
            n=len(names),
            x=join_words(names),
        )
    if form == "a list" or kind == 0 and second.startswith("Now as a list"):
        first, answer = (
            "Here is the list:\n" + a if a.startswith("- ") else a for a in (first, answer)
        )
    return Example("extraction", [order, second], [first, answer], names)
