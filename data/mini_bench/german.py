"""A small German grammar: words with their forms, and noun phrases in case and number.

Written for this bench; every entry is (German forms ..., English forms ...).
"""

# singular, gender (m f n), plural, English singular, English plural
PERSONS = [
    ("Lehrer", "m", "Lehrer", "teacher", "teachers"),
    ("Ärztin", "f", "Ärztinnen", "doctor", "doctors"),
    ("Bäcker", "m", "Bäcker", "baker", "bakers"),
    ("Kind", "n", "Kinder", "child", "children"),
    ("Frau", "f", "Frauen", "woman", "women"),
    ("Mann", "m", "Männer", "man", "men"),
    ("Freundin", "f", "Freundinnen", "friend", "friends"),
    ("Koch", "m", "Köche", "cook", "cooks"),
    ("Schüler", "m", "Schüler", "student", "students"),
    ("Bruder", "m", "Brüder", "brother", "brothers"),
    ("Schwester", "f", "Schwestern", "sister", "sisters"),
    ("Großmutter", "f", "Großmütter", "grandmother", "grandmothers"),
    ("Tochter", "f", "Töchter", "daughter", "daughters"),
    ("Maler", "m", "Maler", "painter", "painters"),
    ("Mädchen", "n", "Mädchen", "girl", "girls"),
    ("Gast", "m", "Gäste", "guest", "guests"),
]
THINGS = [
    ("Brief", "m", "Briefe", "letter", "letters"),
    ("Buch", "n", "Bücher", "book", "books"),
    ("Tasche", "f", "Taschen", "bag", "bags"),
    ("Schlüssel", "m", "Schlüssel", "key", "keys"),
    ("Apfel", "m", "Äpfel", "apple", "apples"),
    ("Brot", "n", "Brote", "loaf", "loaves"),
    ("Lampe", "f", "Lampen", "lamp", "lamps"),
    ("Uhr", "f", "Uhren", "clock", "clocks"),
    ("Zeitung", "f", "Zeitungen", "newspaper", "newspapers"),
    ("Kleid", "n", "Kleider", "dress", "dresses"),
    ("Bild", "n", "Bilder", "picture", "pictures"),
    ("Stuhl", "m", "Stühle", "chair", "chairs"),
    ("Tisch", "m", "Tische", "table", "tables"),
    ("Auto", "n", "Autos", "car", "cars"),
    ("Fahrrad", "n", "Fahrräder", "bicycle", "bicycles"),
    ("Geschenk", "n", "Geschenke", "present", "presents"),
    ("Hut", "m", "Hüte", "hat", "hats"),
    ("Hund", "m", "Hunde", "dog", "dogs"),
    ("Katze", "f", "Katzen", "cat", "cats"),
    ("Pferd", "n", "Pferde", "horse", "horses"),
]
# noun, gender, German preposition (dative), English noun, English preposition
PLACES = [
    ("Garten", "m", "in", "garden", "in"),
    ("Küche", "f", "in", "kitchen", "in"),
    ("Schule", "f", "in", "school", "in"),
    ("Stadt", "f", "in", "city", "in"),
    ("Haus", "n", "hinter", "house", "behind"),
    ("Bahnhof", "m", "an", "station", "at"),
    ("Wald", "m", "in", "forest", "in"),
    ("Markt", "m", "auf", "market", "at"),
    ("Park", "m", "in", "park", "in"),
    ("Brücke", "f", "unter", "bridge", "under"),
    ("Kirche", "f", "vor", "church", "in front of"),
    ("Zimmer", "n", "in", "room", "in"),
    ("Fenster", "n", "neben", "window", "next to"),
    ("Tür", "f", "vor", "door", "in front of"),
]
# infinitive, present sg, present pl, past sg, past pl, participle; English base, 3rd person, past
TAKING = [
    ("kaufen", "kauft", "kaufen", "kaufte", "kauften", "gekauft", "buy", "buys", "bought"),
    ("verkaufen", "verkauft", "verkaufen", "verkaufte", "verkauften", "verkauft",
     "sell", "sells", "sold"),
    ("suchen", "sucht", "suchen", "suchte", "suchten", "gesucht",
     "look for", "looks for", "looked for"),
    ("finden", "findet", "finden", "fand", "fanden", "gefunden", "find", "finds", "found"),
    ("sehen", "sieht", "sehen", "sah", "sahen", "gesehen", "see", "sees", "saw"),
    ("holen", "holt", "holen", "holte", "holten", "geholt", "fetch", "fetches", "fetched"),
    ("vergessen", "vergisst", "vergessen", "vergaß", "vergaßen", "vergessen",
     "forget", "forgets", "forgot"),
    ("malen", "malt", "malen", "malte", "malten", "gemalt", "paint", "paints", "painted"),
    ("brauchen", "braucht", "brauchen", "brauchte", "brauchten", "gebraucht",
     "need", "needs", "needed"),
    ("waschen", "wäscht", "waschen", "wusch", "wuschen", "gewaschen", "wash", "washes", "washed"),
    ("tragen", "trägt", "tragen", "trug", "trugen", "getragen", "carry", "carries", "carried"),
    ("verstecken", "versteckt", "verstecken", "versteckte", "versteckten", "versteckt",
     "hide", "hides", "hid"),
]  # fmt: skip
GIVING = [
    ("geben", "gibt", "geben", "gab", "gaben", "gegeben", "give", "gives", "gave"),
    ("zeigen", "zeigt", "zeigen", "zeigte", "zeigten", "gezeigt", "show", "shows", "showed"),
    ("bringen", "bringt", "bringen", "brachte", "brachten", "gebracht",
     "bring", "brings", "brought"),
    ("schicken", "schickt", "schicken", "schickte", "schickten", "geschickt",
     "send", "sends", "sent"),
]  # fmt: skip
RESTING = [
    ("schlafen", "schläft", "schlafen", "schlief", "schliefen", "geschlafen",
     "sleep", "sleeps", "slept"),
    ("arbeiten", "arbeitet", "arbeiten", "arbeitete", "arbeiteten", "gearbeitet",
     "work", "works", "worked"),
    ("warten", "wartet", "warten", "wartete", "warteten", "gewartet", "wait", "waits", "waited"),
    ("lachen", "lacht", "lachen", "lachte", "lachten", "gelacht", "laugh", "laughs", "laughed"),
    ("sitzen", "sitzt", "sitzen", "saß", "saßen", "gesessen", "sit", "sits", "sat"),
    ("singen", "singt", "singen", "sang", "sangen", "gesungen", "sing", "sings", "sang"),
    ("tanzen", "tanzt", "tanzen", "tanzte", "tanzten", "getanzt", "dance", "dances", "danced"),
    ("spielen", "spielt", "spielen", "spielte", "spielten", "gespielt",
     "play", "plays", "played"),
]  # fmt: skip
ADJECTIVES = [
    ("alt", "old"), ("jung", "young"), ("klein", "small"), ("groß", "big"), ("neu", "new"),
    ("rot", "red"), ("schön", "beautiful"), ("freundlich", "friendly"), ("blau", "blue"),
    ("grün", "green"), ("schwer", "heavy"), ("fremd", "strange"), ("müde", "tired"),
]  # fmt: skip
STATES = [
    ("müde", "tired"), ("krank", "ill"), ("glücklich", "happy"), ("hungrig", "hungry"),
    ("traurig", "sad"), ("stolz", "proud"), ("allein", "alone"), ("nervös", "nervous"),
]  # fmt: skip

DEFINITE = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"},
}
# endings of ein, mein, unser; there is no plural of ein
INDEFINITE = {
    "nom": {"m": "", "f": "e", "n": "", "p": "e"},
    "acc": {"m": "en", "f": "e", "n": "", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
}
OWNERS = [("mein", "my"), ("unser", "our"), ("sein", "his"), ("ihr", "her")]


def adjective(stem, kind, case, gender):
    """Inflect an attributive adjective: klein, definite, acc, m -> kleinen."""
    if gender == "p" or case == "dat" or (case == "acc" and gender == "m"):
        ending = "en"
    elif kind == "definite" or gender == "f":
        ending = "e"
    else:
        ending = "er" if gender == "m" else "es"
    return stem + (ending[1:] if stem.endswith("e") else ending)


def noun_phrase(rng, nouns, case, adjective_share=0.3):
    """Draw a noun phrase -> (German, English, is plural)."""
    single, gender, many, en_single, en_many = rng.choice(nouns)
    plural = rng.random() < 0.25
    german, english = (many, en_many) if plural else (single, en_single)
    if plural:
        gender = "p"
        if case == "dat" and german[-1] not in "ns":
            german += "n"
    kind = rng.choice(["definite", "definite", "ein", "owner"])
    if kind == "ein" and plural:
        kind = "definite"
    describe = rng.choice(ADJECTIVES) if rng.random() < adjective_share else None
    if describe:
        german = adjective(describe[0], kind, case, gender) + " " + german
        english = describe[1] + " " + english
    if kind == "definite":
        return f"{DEFINITE[case][gender]} {german}", f"the {english}", plural
    if kind == "ein":
        article = "an" if english[0] in "aeiou" else "a"
        return f"ein{INDEFINITE[case][gender]} {german}", f"{article} {english}", plural
    owner, en_owner = rng.choice(OWNERS)
    return f"{owner}{INDEFINITE[case][gender]} {german}", f"{en_owner} {english}", plural


def place_phrase(rng):
    """Draw a place with its preposition and the dative article -> (German, English)."""
    noun, gender, preposition, en_noun, en_preposition = rng.choice(PLACES)
    german = f"{preposition} {DEFINITE['dat'][gender]} {noun}"
    german = german.replace("in dem ", "im ").replace("an dem ", "am ")
    return german, f"{en_preposition} the {en_noun}"
