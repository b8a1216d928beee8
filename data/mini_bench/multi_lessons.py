"""Two-turn conversations of the topics stem and humanities."""

from data.mini_bench import knowledge
from data.mini_bench.phrasing import Example, join_words, say
from data.mini_bench.qa import facts_as_text

# concept: (definition, cause, example, for a child)
CONCEPTS = {
    "evaporation": ("a liquid turns into a gas", "fast particles leave the surface",
                    "a puddle dries in the sun", "water flies away when it is warm"),
    "gravity": ("masses attract each other", "mass bends space around it",
                "an apple falls to the ground", "the Earth pulls everything down"),
    "friction": ("surfaces resist sliding", "tiny bumps catch on each other",
                 "brakes stop a bicycle", "rough things rub and slow down"),
    "photosynthesis": ("plants make sugar from light", "leaves catch light with a green dye",
                       "a tree grows in a bright garden", "plants eat sunshine"),
    "magnetism": ("some metals attract iron", "small charges move in the same way",
                  "a compass needle points north", "a magnet holds a nail without glue"),
    "erosion": ("wind and water carry soil away", "moving water loosens small grains",
                "a river cuts a valley", "rain nibbles at the hills"),
    "condensation": ("a gas turns into a liquid", "cold slows the particles down",
                     "drops form on a cold glass", "steam becomes water again"),
    "electric current": ("charges flow through a wire", "a battery pushes the charges",
                         "a lamp shines when it is switched on", "tiny grains run through a wire"),
    "sound": ("waves travel through the air", "something moves back and forth quickly",
              "a drum makes the window tremble", "the air wiggles and your ear feels it"),
    "digestion": ("the body breaks food into small parts", "acid and enzymes cut long molecules",
                  "bread tastes sweet after long chewing", "your belly makes food tiny"),
    "inertia": ("a body keeps its motion", "a change of motion needs a force",
                "passengers lean forward when a bus stops", "things do not like to start or stop"),
    "osmosis": ("water moves through a thin skin", "water spreads to the saltier side",
                "a raisin swells in water", "water sneaks through a tiny net"),
    "reflection": ("light bounces off a surface", "a smooth surface sends all rays one way",
                   "a lake shows the mountains", "light jumps back like a ball"),
    "pollination": ("pollen reaches another flower", "insects and wind carry the grains",
                    "bees visit an apple tree", "bees bring dust from flower to flower"),
    "combustion": ("a fuel reacts with oxygen", "heat breaks the bonds of the fuel",
                   "wood burns in a stove", "fire eats wood and air"),
    "density": ("mass is measured per volume", "heavy particles are packed closely",
                "oil floats on water", "a small stone can be heavier than a big sponge"),
}  # fmt: skip
STEM_ORDERS = [
    "[What is|Explain|Describe] {c}.",
    "[Can you explain|Please describe] {c} [in a few sentences|and its cause|briefly]?",
    "I [read about|heard of] {c}. [What is it?|How does it work?|Why does it happen?]",
]


def stem(rng):
    """A concept of science, then an example, a child's version or a list; reference: definition."""
    concept = rng.choice(list(CONCEPTS))
    meaning, cause, example, child = CONCEPTS[concept]
    slots = {"c": concept, "m": meaning, "k": cause, "e": example, "y": child}
    order = say(rng, rng.choice(STEM_ORDERS), **slots)
    order = order.replace("What is " + concept + ".", "What is " + concept + "?")
    parts = [
        "[{c1} means that|In {c},|We speak of {c} when|By {c} we mean that] {m}.",
        "[This happens because|The cause is that|The reason is simple:] {k}.",
    ]
    if rng.random() < 0.5:
        parts.append("[You can see it when|One sign of it is that|It is at work when] {e}.")
    capital = concept[0].upper() + concept[1:]
    first = " ".join(say(rng, part, c1=capital, **slots) for part in parts)
    kind = rng.randrange(3)
    if kind == 0:
        second = say(
            rng, "[Give me an example.|Where can I see that?|Is there an example from daily life?]"
        )
        answer = say(rng, "[For example|A good example is this]: {e}. [Here|In this case] [it "
                          "works|it happens] because {k}.",
                     **slots)  # fmt: skip
    elif kind == 1:
        second = say(rng, "[Explain it to a child.|Now say it for a small child.|Simpler, please.]")
        answer = say(
            rng,
            "[Imagine|Think of it like this|Look]: {y}. [That is all|That is {c}|So easy is {c}]!",
            **slots,
        )
    else:
        second = say(
            rng,
            "[Turn your answer into a list.|Give me the main points.|As bullet points, please.]",
        )
        answer = say(
            rng,
            "Here are the points:\n- Topic: {c}\n- Meaning: {m}\n- Cause: {k}\n- Example: {e}.",
            **slots,
        )
    return Example("stem", [order, second], [first, answer], [meaning])


def humanities(rng):
    """The history of an invented country, or a comparison of two; references: names in it."""
    one, two = rng.sample(knowledge.COUNTRIES, 2)
    facts, other = knowledge.WORLD["country"][one], knowledge.WORLD["country"][two]
    attributes = list(knowledge.ATTRIBUTES["country"])
    rng.shuffle(attributes)
    if rng.random() < 0.6:
        order = say(rng, "[Tell me about the history of|Write about the culture of|Describe the "
                         "rise of|Give me an overview of] {e}[.|, "
                    "please.| in a few sentences.| for a school talk.]", e=one)  # fmt: skip
        closer = say(rng, "[Trade|The river|Its capital|The first ruler] [shaped|changed|formed] "
                          "{e} [for centuries|more than any war|for ever].",
                     e=one)  # fmt: skip
        first = f"{facts_as_text(rng, 'country', one, attributes[:3])} {closer}"
        if rng.random() < 0.5:
            second = say(
                rng, "[And what about {t}?|Now do the same for {t}.|Tell me about {t}, too.]", t=two
            )
            answer = facts_as_text(rng, "country", two, attributes[:3])
        else:
            second = say(
                rng, "[Shorten this to a list.|Only the key words, please.|Give me notes on it.]"
            )
            names = [f"{a.name}: {facts[a.name]}" for a in attributes[:3]]
            answer = "Notes:\n" + "\n".join("- " + name for name in names) + "\nThat is all."
        return Example(
            "humanities", [order, second], [first, answer], [one, facts[attributes[0].name]]
        )
    order = say(rng, "[Compare|What is the difference between|How do these differ:] {a} and {b}, "
                     "[their capitals and their exports|"
                "their exports and their capitals].", a=one, b=two)  # fmt: skip
    first = say(
        rng,
        "[While the capital of {a} is {x}, that of {b} is {y}|{a} is ruled from {x}, but {b} from "
        "{y}]. "
        "[{a} sells {p}, whereas {b} sells {q}|The export of {a} is {p}, that of {b} is {q}].",
        a=one, b=two, x=facts["capital"], y=other["capital"], p=facts["export"], q=other["export"],
    )  # fmt: skip
    second = say(rng, "[And their founders?|Who founded them?|Which rulers founded the two?]")
    answer = say(rng, "{a} was founded by {x} the Great, {b} by {y} the Great. [Both|The two] are "
                      "[still honoured|not forgotten] "
                 "[there|in {c}|by their "
                 "people].", a=one, b=two, x=facts["ruler"], y=other["ruler"],
                 c=join_words([facts["capital"], other["capital"]]))  # fmt: skip
    return Example("humanities", [order, second], [first, answer], [facts["ruler"], other["ruler"]])
