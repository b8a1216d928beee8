"""Short invented news articles and a summary of two or three sentences each."""

from data.mini_bench.phrasing import Example, join_words, say, sentence
from data.mini_bench.words import DAYS, MONTHS, TOWNS, full_name

ORDERS = [
    "Summarize the following article in a few sentences.\n\n{text}",
    "Write a short summary of this text.\n\n{text}",
    "{text}\n\nSummarize the text above.",
    "Article: {text}\nWhat are the main points?",
    "Please sum up this report briefly:\n\n{text}",
    "{text}\n\nTL;DR?",
]
COLOUR = [
    "The weather was [cold|mild|windy|sunny|grey] [all day|for most of the time|that week].",
    "[Many|Some|A few] [families|visitors|neighbours|tourists] [took photographs|stayed until "
    "late|brought their children].",
    "The [local newspaper|radio|school paper] had written about it [for weeks|several "
    "times|before].",
    "[Coffee|Soup|Tea|Bread] was [sold|served|offered] [at the corner|in front of the town "
    "hall|nearby].",
    "The [streets|buses|hotels|car parks] of {town} were [full|crowded|busy].",
    "[An old man|A young woman|A student|A shop owner] said that it was [a great day|a strange "
    "time|a surprise|worth it].",
    "There had been [long talks|some doubts|much debate] [about it|in the council|among the "
    "people].",
    "The [council|police|fire brigade] [thanked|praised] all [helpers|citizens|volunteers].",
    "[Nobody|No one] could remember [anything like it|such a week|a similar case].",
    "[Later|In the afternoon|At night] [it rained a little|a band played|the square was cleaned].",
]


# Each event draws -> (first sentence, further facts, what a summary says of them).
def _opening(rng, s):
    """A new building is opened."""
    thing = rng.choice(
        ["library", "museum", "bridge", "school", "swimming pool", "theatre", "park"]
    )
    years, visitors = rng.randint(2, 9), rng.randint(2, 9) * 100
    lead = say(rng, "The new {x} in {town} was opened on {day}", x=thing, **s)
    facts = [
        f"The work on the {thing} took {years} years and cost {s['cost']} million crowns.",
        f"{s['chief']}, who led the project, [cut|held] the ribbon.",
        f"[About|Around|More than] {visitors} people [came|were there|watched] on the first day.",
        f"The {thing} will be [free|open every day|closed on Mondays] [until|before] {s['month']}.",
    ]
    points = [
        f"the building [took|needed] {years} years and {s['cost']} million crowns",
        f"{visitors} people came [at once|on the first day]",
        f"{s['chief']} led the project",
    ]
    return lead, facts, points


def _storm(rng, s):
    """A storm, flood, fire or snowfall."""
    kind = rng.choice(["storm", "flood", "fire", "snowfall"])
    houses, people = rng.randint(12, 90), rng.randint(2, 40)
    lead = say(
        rng, "A [heavy|sudden|terrible] {x} [hit|damaged|struck] {town} on {day}", x=kind, **s
    )
    facts = [
        f"[In all|Altogether] {houses} houses were damaged and {people} people had to leave their "
        f"homes.",
        f"The damage is [put|estimated] at {s['cost']} million crowns.",
        f"{s['chief']} of the rescue service [asked|called] for help from {s['other']}.",
        f"The repairs [will last|should take] until {s['month']}.",
    ]
    points = [
        f"{houses} houses were damaged",
        f"{people} people had to leave [their homes|home]",
        f"the damage is {s['cost']} million crowns",
        f"repairs last until {s['month']}",
    ]
    return lead, facts, points


def _match(rng, s):
    """A match between two towns."""
    sport = rng.choice(["football", "handball", "hockey", "water polo"])
    goals = rng.randint(3, 9)
    less = rng.randint(0, goals - 1)
    lead = say(rng, "The {x} team of {town} [beat|defeated] {other} {a} to {b} on {day}",
               x=sport, a=goals, b=less, **s)  # fmt: skip
    facts = [
        f"{s['chief']} [scored|shot] the [first|last|best] goal of the match.",
        f"The team of {s['other']} [lost|missed] its [captain|keeper] {s['second']} early, who "
        f"was hurt.",
        f"[About|Around|More than] {s['cost']} thousand people [watched|saw] the match.",
        f"The two teams will meet again in {s['month']}.",
    ]
    points = [
        f"{s['chief']} scored",
        f"{s['second']} was hurt [early|in the match]",
        f"the teams meet again in {s['month']}",
    ]
    return lead, facts, points


def _factory(rng, s):
    """News about a factory."""
    goods = rng.choice(["bicycles", "shoes", "lamps", "toys", "engines", "furniture", "chocolate"])
    jobs = rng.randint(2, 9) * 10
    lead = say(rng, "A factory for {x} in {town} will [close|move to {other}|grow|hire {j} "
                    "workers] in {month}",
               x=goods, j=jobs, **s)  # fmt: skip
    facts = [
        f"The owner, {s['chief']}, [told|informed] the workers on {s['day']}.",
        f"[At the moment|Today] the factory makes {goods} worth {s['cost']} million crowns a year.",
        f"[In all|Altogether] {jobs} [jobs|families] [are affected|depend on it].",
        f"{s['second']}, who speaks for the workers, [called|named] the plan [unfair|good|too "
        f"quick|brave].",
    ]
    points = [
        f"{s['chief']} told the workers on {s['day']}",
        f"{jobs} jobs are affected",
        f"{s['second']} speaks for the workers",
    ]
    return lead, facts, points


def _discovery(rng, s):
    """Somebody finds something."""
    find = rng.choice(["old coins", "a "
                                    "stone tomb", "a lost "
                                                  "painting", "a rare flower", "a sunken ship",
                       "dinosaur bones", "a hidden cellar"])  # fmt: skip
    age, who = (
        rng.randint(2, 9) * 100,
        rng.choice(["farmer", "diver", "teacher", "hiker", "student"]),
    )
    lead = say(rng, "A {w} [has found|discovered] {x} near {town} on {day}", w=who, x=find, **s)
    facts = [
        f"The {who}, {s['chief']}, [noticed|saw] something [odd|strange] [on the way home|in the "
        f"morning].",
        f"Experts from {s['other']} say that the find is {age} years old.",
        f"It may be worth {s['cost']} million crowns.",
        f"[From|Starting in] {s['month']} it [can be seen|will be shown] in the museum of "
        f"{s['other']}.",
    ]
    points = [
        f"the find is {age} years old",
        f"it may be worth {s['cost']} million crowns",
        f"it will be shown in {s['other']} from {s['month']}",
        f"the {who} is {s['chief']}",
    ]
    return lead, facts, points


EVENTS = [_opening, _storm, _match, _factory, _discovery]


def article(rng):
    """Draw an article -> (text, summary)."""
    town, other = rng.sample(TOWNS, 2)
    slots = {
        "town": town, "other": other, "day": rng.choice(DAYS), "month": rng.choice(MONTHS),
        "chief": full_name(rng), "second": full_name(rng), "cost": rng.randint(2, 99),
    }  # fmt: skip
    lead, facts, points = rng.choice(EVENTS)(rng, slots)
    facts = [say(rng, fact) for fact in facts]
    for filler in rng.sample(COLOUR, rng.randint(1, 4)):
        facts.insert(rng.randint(0, len(facts)), say(rng, filler, **slots))
    picked = [say(rng, point) for point in rng.sample(points, rng.choice([2, 3, 3]))]
    if len(picked) == 3:
        rest = f"{sentence(picked[0])}. {sentence(join_words(picked[1:]))}."
    else:
        rest = f"{sentence(join_words(picked))}."
    opener = say(
        rng, "[|||The article says that |The report is about this: |In short, |Main point: ]"
    )
    first = lead
    if opener.rstrip()[-1:] in ("t", ","):
        first = lead[0].lower() + lead[1:]
    return f"{lead}. {' '.join(facts)}", f"{opener}{first}. {rest}"


def make(rng):
    """An article to sum up; the reference is one good summary."""
    text, summary = article(rng)
    order = rng.choice(ORDERS).replace("{text}", text)
    return Example("summarization", [order], [summary], [summary])
