"""The invented world that the closed-book questions ask about: fixed facts, drawn once.

Every entity has a kind, a name and one value per attribute. The same seed gives the same world
in every corpus, so that a model can memorise it.
"""

import random
from dataclasses import dataclass

COUNTRIES = """Avaria Belmora Corvenia Drosland Elandor Fenmark Galdoria Hestova Istria Jorland
Kelmar Lorvenia Mirandia Norvath Ostania Pelagia""".split()
CAPITALS = """Anport Brellin Castova Dornik Elmsund Farholm Gildan Harbek Isenburg Jaspen Korvik
Lindau Morwen Nesbit Ostrava Perlin""".split()
RIVERS = "Amber Bren Coln Dane Esk Fenn Gale Hiss Inn Jade Kell Lune Mede Nara Orm Pell".split()
RULERS = """Adela Boris Cedric Dalia Edmund Freya Gregor Hilda Igor Juna Konrad Leona Magnus Nadia
Otto Pia""".split()
EXPORTS = """amber wool copper honey glass salt tea silk timber cheese olives paper tin wine rice
pottery""".split()
INVENTORS = """Alvin Beatrix Cosmo Dorothea Emil Flora Gideon Henrietta Ivo Josefa Kasimir Ludmila
Moritz Nelly Orson Philippa""".split()
MACHINES = """steam organ|glass compass|paper lamp|water clock|folding bridge|silent bell
|wind plough|letter press|salt engine|wooden bicycle|ice box|pocket telescope|moon calendar
|cloud meter|rope lift|copper battery""".replace("\n", "").split("|")
CRAFTS = """clockmaker teacher miller sailor carpenter baker doctor gardener smith painter weaver
printer""".split()
ANIMALS = """brindle fox|coral heron|dusk lizard|ember owl|frost hare|golden newt|harbor seal
|island goat|jade beetle|king moth|lantern fish|marsh deer|night otter|opal snake|pine marten
|river bear""".replace("\n", "").split("|")
FOODS = """berries roots snails moss fish seeds worms leaves nuts crabs mushrooms grass""".split()
HABITATS = """caves|swamps|old forests|high mountains|warm lakes|sand dunes|cold rivers|salt marshes
|deep valleys|rocky coasts""".replace("\n", "").split("|")
COLOURS = "red white black brown grey yellow orange purple silver green".split()
BOOKS = """The Iron Garden|A Winter Map|The Last Ferry|Songs of Dust|The Glass Orchard|Nine Lanterns
|The Quiet Harbor|A House of Rain|The Paper King|Blue Thunder|The Salt Road|An Empty Chair
|The Clay Bird|Seven Doors|The Hollow Hill|Letters to June""".replace("\n", "").split("|")
HEROES = """orphan|sailor|widow|thief|shepherd|judge|painter|soldier|beekeeper|doctor|pilot|ghost
""".replace("\n", "").split("|")
THEMES = "love war hope revenge friendship hunger freedom exile".split()


@dataclass(frozen=True)
class Attribute:
    """How one fact is asked for and told; {e} is the entity, {v} the value."""

    name: str
    asks: tuple
    tells: tuple


ATTRIBUTES = {
    "country": (
        Attribute("capital", ("what is the capital of {e}", "which city is the capital of {e}"),
                  ("The capital of {e} is {v}", "{v} is the capital of {e}",
                   "{e} is governed from its capital, {v}")),
        Attribute("river", ("which river flows through {e}", "what is the longest river of {e}"),
                  ("The river {v} flows through {e}", "The longest river of {e} is the {v}",
                   "{e} lies along the river {v}")),
        Attribute("ruler", ("who founded {e}", "who was the first ruler of {e}"),
                  ("{e} was founded by {v} the Great", "{v} the Great founded {e}",
                   "The first ruler of {e} was {v} the Great")),
        Attribute("export", ("what does {e} export", "what is {e} known for selling"),
                  ("{e} exports mostly {v}", "{e} is known for selling {v}",
                   "The main export of {e} is {v}")),
    ),
    "inventor": (
        Attribute("machine", ("what did {e} invent", "which invention is {e} known for"),
                  ("{e} invented the {v}", "{e} is known for the {v}",
                   "The {v} was invented by {e}")),
        Attribute("birthplace", ("where was {e} born", "in which town was {e} born"),
                  ("{e} was born in {v}", "{e} came from {v}", "The birthplace of {e} is {v}")),
        Attribute("craft", ("what was the profession of {e}", "what work did {e} do"),
                  ("{e} worked as a {v}", "By profession {e} was a {v}",
                   "{e} earned a living as a {v}")),
        Attribute("year", ("when was {e} born", "in which year was {e} born"),
                  ("{e} was born in the year {v}", "The year of birth of {e} is {v}",
                   "The life of {e} began in {v}")),
    ),
    "animal": (
        Attribute("food", ("what does the {e} eat", "what is the food of the {e}"),
                  ("The {e} eats {v}", "The {e} lives on {v}", "Its food is {v}")),
        Attribute("habitat", ("where does the {e} live", "where can the {e} be found"),
                  ("The {e} lives in {v}", "The {e} can be found in {v}", "Its home are {v}")),
        Attribute("colour", ("what colour is the {e}", "which colour does the {e} have"),
                  ("The {e} is {v}", "The colour of the {e} is {v}", "Its colour is {v}")),
        Attribute("size", ("how long is the {e}", "how big does the {e} get"),
                  ("The {e} grows {v} centimetres long", "The {e} is {v} centimetres long",
                   "It reaches a length of {v} centimetres")),
    ),
    "book": (
        Attribute("author", ("who wrote {e}", "who is the author of {e}"),
                  ("{e} was written by {v}", "{v} wrote {e}", "The author of {e} is {v}")),
        Attribute("hero", ("who is the main character of {e}", "who is {e} about"),
                  ("The main character is a {v}", "{e} tells the story of a {v}",
                   "{e} follows the life of a {v}")),
        Attribute("place", ("where does {e} take place", "in which country is {e} set"),
                  ("{e} takes place in {v}", "{e} is set in {v}", "The story is set in {v}")),
        Attribute("theme", ("what is the theme of {e}", "which subject does {e} deal with"),
                  ("The theme of {e} is {v}", "{e} deals with {v}", "Its great subject is {v}")),
    ),
}  # fmt: skip


def _build_world():
    """Draw every entity's facts -> {kind: {entity: {attribute: value}}}."""
    rng = random.Random(20240229)

    def shuffled(values, count=16):
        """Values in random order, repeated where there are fewer than count."""
        values = list(values) * -(-count // len(values))
        rng.shuffle(values)
        return values[:count]

    def table(names, **columns):
        """Columns of values -> one dictionary of facts per name."""
        return {n: {c: values[i] for c, values in columns.items()} for i, n in enumerate(names)}

    years = [str(year) for year in rng.sample(range(1700, 1900), 16)]
    sizes = [str(size) for size in rng.sample(range(12, 99), 16)]
    authors = [f"{name} of {town}" for name, town in zip(shuffled(RULERS), shuffled(CAPITALS))]
    return {
        "country": table(COUNTRIES, capital=shuffled(CAPITALS), river=shuffled(RIVERS),
                         ruler=shuffled(RULERS), export=shuffled(EXPORTS)),
        "inventor": table(INVENTORS, machine=shuffled(MACHINES), birthplace=shuffled(CAPITALS),
                          craft=shuffled(CRAFTS), year=years),
        "animal": table(ANIMALS, food=shuffled(FOODS), habitat=shuffled(HABITATS),
                        colour=shuffled(COLOURS), size=sizes),
        "book": table(BOOKS, author=authors, hero=shuffled(HEROES), place=shuffled(COUNTRIES),
                      theme=shuffled(THEMES)),
    }  # fmt: skip


WORLD = _build_world()
KINDS = list(WORLD)


def article_fix(text):
    """a orphan -> an orphan."""
    return text.replace(" a orphan", " an orphan")


def tell(rng, kind, entity, attribute):
    """One fact as a sentence without its full stop."""
    template = rng.choice(attribute.tells)
    return article_fix(template.format(e=entity, v=WORLD[kind][entity][attribute.name]))


def ask(rng, entity, attribute):
    """One fact as a question without its question mark, lower-case first letter."""
    return rng.choice(attribute.asks).format(e=entity)
