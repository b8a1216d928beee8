"""Two-turn conversations of the topics writing and roleplay."""

from data.mini_bench.phrasing import Example, say, sentence, with_article
from data.mini_bench.words import PEOPLE, TOWNS

HEROES = "baker sailor painter teacher farmer clockmaker student postman gardener musician".split()
FINDS = """silver key|old map|tiny door|broken clock|strange letter|blue lantern|wooden box
|talking cat|golden feather|forgotten song""".replace("\n", "").split("|")
PLACES = """in the attic|under the bridge|behind the mill|near the harbor|in the garden
|at the market|on the hill|in the library""".replace("\n", "").split("|")
MOODS = "happy sad funny quiet strange".split()
OPENINGS = [
    "[One morning|One evening|Last winter|On a rainy day], {n} the {h} found {f} {p}.",
    "{n} was {ah} who lived in {t}. [One day|Last spring|One night] {n} found {f} {p}.",
    "In {t} there lived {ah} named {n}. {p1} {n} found {f}.",
]
MIDDLES = [
    "[At first|In the beginning] nobody [believed it|cared], so {n} [kept it secret|told only a "
    "friend].",
    "{n} [could not sleep|thought about it all night] and [went back|looked again] the next day.",
    "The [neighbours|children|old people] of {t} [laughed|wondered|whispered] when they heard "
    "of it.",
    "It was [cold|warm|heavy|light] and [smelled of salt|made a soft sound|seemed very old].",
    "A [stranger|small bird|grey dog] [followed|watched] {n} all the way home.",
    "[For three days|For a week|Until midnight] {n} tried to [understand|explain] what it meant.",
]
ENDINGS = {
    "happy": [
        "In the end {n} shared it with everyone, and {t} had a great feast.",
        "Since then {n} has never been lonely again.",
    ],
    "sad": [
        "In the end it was gone, and {n} left {t} for ever.",
        "{n} lost it in the snow and cried for a long time.",
    ],
    "funny": [
        "In the end it turned out to belong to the mayor's cat.",
        "Everyone laughed, and {n} laughed the loudest.",
    ],
    "quiet": [
        "Then {n} put it back and closed the door without a word.",
        "Nobody spoke of it again, but {n} still smiles at night.",
    ],
    "strange": [
        "The next morning there were two of them.",
        "Since then all clocks in {t} run backwards.",
    ],
}
STORY_ORDERS = [
    "Write a {m} story about {ah} who finds {f}.",
    "Tell me a {m} little story: {ah} finds {f} {p}.",
    "I need a short, {m} story about {n}, {ah} from {t}, and {f}.",
    "Make up a {m} story with {ah} named {n} and {f} in it.",
]


def _story_slots(rng):
    """Draw all that a story can mention."""
    hero, find, place = rng.choice(HEROES), rng.choice(FINDS), rng.choice(PLACES)
    return {
        "n": rng.choice(PEOPLE), "t": rng.choice(TOWNS), "h": hero, "ah": with_article(hero),
        "f": with_article(find), "p": place, "p1": sentence(place), "m": rng.choice(MOODS),
    }  # fmt: skip


def _follow_up(rng, slots, first, middle, ending):
    """The second turn to a story -> (order, answer)."""
    kind = rng.randrange(4)
    title = say(rng, "[The Secret of {n}|{n} and the {g}|A Day in {t}|The {g}]",
                g=slots["f"].split(" ", 1)[1].title(), **slots)  # fmt: skip
    if kind == 0:
        order = (
            "[Shorten it to two sentences.|Now make it much shorter.|Only the beginning and "
            "the end, please.]"
        )
        return say(rng, order), f"{first[-1]} {ending}"
    if kind == 1:
        order = "[Turn it into a list.|Now write the story as a list of points.|List what happens.]"
        points = [f"{i + 1}. {s}" for i, s in enumerate([*first, *middle, ending])]
        return say(rng, order), "\n".join(points)
    if kind == 2:
        mood = rng.choice([m for m in MOODS if m != slots["m"]])
        other = say(rng, rng.choice(ENDINGS[mood]), **slots)
        order = (
            "[Give it a {x} ending|Now let it end in a {x} way|Rewrite the end so that it is {x}]."
        )
        return say(rng, order, x=mood), " ".join([*first, *middle, other])
    order = (
        "[Find a title and repeat the first sentence.|Which title would you give it? "
        "Start it again.]"
    )
    return say(rng, order), f'The title is "{title}". {first[0]}'


def writing(rng):
    """A short story, then a change to it; the reference is the wanted mood."""
    slots = _story_slots(rng)
    order = say(rng, rng.choice(STORY_ORDERS), **slots)
    opening = say(rng, rng.choice(OPENINGS), **slots)
    first = opening.replace(". ", ".\n").split("\n")
    middle = [say(rng, text, **slots) for text in rng.sample(MIDDLES, rng.choice([3, 4, 5]))]
    ending = say(rng, rng.choice(ENDINGS[slots["m"]]), **slots)
    story = " ".join([*first, *middle, ending])
    second, answer = _follow_up(rng, slots, first, middle, ending)
    return Example("writing", [order, second], [story, answer], [slots["m"]])


# who: (greeting, daily work, worry, joy, advice)
ROLES = {
    "pirate": ("Ahoy", "scrub the deck and count the gold", "the storm", "a chest of rum",
               "trust the wind"),
    "robot": ("Beep", "sort the screws and charge my "
                      "battery", "rust", "fresh oil", "read the manual"),
    "wizard": ("Greetings", "stir the potions and feed the dragon", "the black tower",
               "a new spell", "never hurry magic"),
    "king": ("Welcome", "sign the laws and ride through the land", "my brother", "a long feast",
             "listen before you speak"),
    "detective": ("Good evening", "follow the traces and ask the witnesses", "the fog",
                  "a clear clue", "look twice"),
    "grandmother": ("Hello dear", "bake bread and water the flowers", "the cold winter",
                    "a visit from the children", "wear a warm coat"),
    "astronaut": ("Hello Earth", "check the air and measure the stars", "the silence",
                  "the blue sunrise", "stay calm"),
    "chef": ("Come in", "chop the onions and taste the soup", "an empty plate", "ripe tomatoes",
             "use more butter"),
    "ghost": ("Boo", "float through the halls and rattle the chains", "the morning light",
              "an open window", "do not look back"),
    "farmer": ("Good morning", "milk the cows and mend the fence", "the dry summer",
               "a full barn", "get up early"),
}  # fmt: skip
ROLE_ORDERS = [
    "Pretend to be a {r} named {n}. How was your day?",
    "You are {n}, a {r} in {t}. Tell me about your life.",
    "Play the role of a {r} called {n} and introduce yourself.",
    "Act as a {r}. Your name is {n}. What do you do all day?",
]
ROLE_LINES = [
    "[Every day|Each morning|Day after day] I {w}.",
    "[Today|Last night|This week] {o} [came to see|helped|surprised] me, and we talked about {y}.",
    "[My only worry is|I fear nothing but|What troubles me is] {x}.",
    "[Nothing makes me happier than|I dream of|What I love most is] {y}.",
    "People in {t} [call me brave|know my name|think I am odd].",
]


def roleplay(rng):
    """A role introduces itself, then answers one more question in the role; reference: the role."""
    role = rng.choice(list(ROLES))
    greeting, work, worry, joy, advice = ROLES[role]
    name, other = rng.sample(PEOPLE, 2)
    town = rng.choice(TOWNS)
    slots = {"r": role, "n": name, "o": other, "t": town, "w": work, "x": worry, "y": joy}
    order = say(rng, rng.choice(ROLE_ORDERS), **slots).replace("a astronaut", "an astronaut")
    lines = [say(rng, line, **slots) for line in rng.sample(ROLE_LINES, rng.choice([3, 4]))]
    who = say(
        rng, "[I am {n}, the {r}|My name is {n} and I am a {r}|{n} the {r} speaks to you].", **slots
    )
    first = f"{greeting}! {who} {' '.join(lines)}".replace("a astronaut", "an astronaut")
    kind = rng.randrange(3)
    if kind == 0:
        second = say(
            rng,
            "[What are you afraid of?|What worries you, {n}?|Is there anything you fear?]",
            n=name,
        )
        answer = say(rng, "{g}! [I am afraid of|I fear|It is] {x}, [my friend|I must say|if you "
                          "ask me]. "
                     "[But then I think of|What helps me "
                     "is] {y}.", g=greeting, x=worry, y=joy)  # fmt: skip
    elif kind == 1:
        second = say(rng, "[Stay in your role and give me advice.|{n}, what should I do with my "
                          "life?|Any advice for {o}?]",
                     n=name, o=other)  # fmt: skip
        answer = say(rng, "{g}! [A {r} knows|My advice is|I tell everyone]: {a}[, and think of "
                          "{y}|, and do not fear {x}|]. "
                     "[That is how I live|It always helped me|Remember my words].",
                     g=greeting, r=role, a=advice, x=worry, y=joy)  # fmt: skip
    else:
        second = say(
            rng,
            "[Say that again in one sentence.|Shorter, please, {n}.|Who are you in one sentence?]",
            n=name,
        )
        answer = say(rng, "I am {n}, [a|the] {r} who loves {y} and fears {x}.", **slots)
    answer = answer.replace("a astronaut", "an astronaut").replace("A astronaut", "An astronaut")
    return Example("roleplay", [order, second], [first, answer], [role])
