"""German sentences and their English translation, built side by side."""

from data.mini_bench.german import (
    GIVING,
    PERSONS,
    RESTING,
    STATES,
    TAKING,
    THINGS,
    noun_phrase,
    place_phrase,
)
from data.mini_bench.phrasing import Example, sentence

TIMES = {
    "present": [("heute", "today"), ("oft", "often"), ("jeden Tag", "every day"),
                ("am Abend", "in the evening"), ("im Winter", "in winter")],
    "past": [("gestern", "yesterday"), ("am Montag", "on Monday"), ("letzte Woche", "last week"),
             ("im Sommer", "in summer"), ("am Morgen", "in the morning")],
    "future": [("morgen", "tomorrow"), ("bald", "soon"), ("nächste Woche", "next week"),
               ("am Sonntag", "on Sunday")],
}  # fmt: skip
MODALS = [
    ("will", "wollen", "wants to", "want to"),
    ("kann", "können", "can", "can"),
    ("muss", "müssen", "must", "must"),
    ("darf", "dürfen", "may", "may"),
]
TENSES = ["present", "present", "past", "perfect", "future", "modal", "negated"]
CLAUSES = [("weil", "because"), ("wenn", "when"), ("obwohl", "although"), ("während", "while")]
REPORTS = [
    ("Ich glaube, dass", "I believe that"),
    ("Wir wissen, dass", "We know that"),
    ("Sie sagt, dass", "She says that"),
    ("Er hofft, dass", "He hopes that"),
]
ORDERS = [
    "Translate into English: {text}",
    "Translate the following German text into English.\n\n{text}",
    "What does this mean in English?\n{text}",
    "Please give me the English translation of: {text}",
    "How do you say this in English: {text}",
    "English, please: {text}",
    "Translate from German to English.\nGerman: {text}",
]


def _predicate(rng):
    """Draw a verb with what it needs -> (verb forms, German objects, English objects)."""
    kind = rng.random()
    if kind < 0.5:
        german, english, _ = noun_phrase(rng, THINGS, "acc")
        return rng.choice(TAKING), german, english
    if kind < 0.7:
        receiver, en_receiver, _ = noun_phrase(rng, PERSONS, "dat", 0.1)
        german, english, _ = noun_phrase(rng, THINGS, "acc", 0.1)
        return rng.choice(GIVING), f"{receiver} {german}", f"{en_receiver} {english}"
    german, english = place_phrase(rng)
    return rng.choice(RESTING), german, english


def _verb(rng, forms, tense, plural):
    """Finite verb and what goes to the clause's end -> (finite, last, English verb)."""
    infinitive, present, presents, past, pasts, participle, base, third, en_past = forms
    if tense == "past":
        return pasts if plural else past, "", en_past
    if tense == "perfect":
        return "haben" if plural else "hat", participle, en_past
    if tense == "future":
        return "werden" if plural else "wird", infinitive, f"will {base}"
    if tense == "modal":
        single, many, en_single, en_many = rng.choice(MODALS)
        english = f"{en_many if plural else en_single} {base}"
        return many if plural else single, infinitive, english
    if tense == "negated":
        return presents if plural else present, "nicht", f"{'do' if plural else 'does'} not {base}"
    return presents if plural else present, "", base if plural else third


def _main_clause(rng):
    """Verb-second clause, the time first or after the verb -> (German, English), no full stop."""
    tense = rng.choice(TENSES)
    subject, en_subject, plural = noun_phrase(rng, PERSONS, "nom")
    forms, objects, en_objects = _predicate(rng)
    finite, last, en_verb = _verb(rng, forms, tense, plural)
    if tense == "negated" and forms in RESTING:
        objects, last = f"nicht {objects}", ""
    period = {"perfect": "past", "modal": "future", "negated": "present"}.get(tense, tense)
    time, en_time = rng.choice(TIMES[period]) if rng.random() < 0.45 else ("", "")
    if en_time == "often":
        time = en_time = ""
    if time and rng.random() < 0.5:
        words = [time, finite, subject, objects, last]
    else:
        words = [subject, finite, time, objects, last]
    english = f"{en_subject} {en_verb} {en_objects} {en_time}".strip()
    return " ".join(word for word in words if word), english


def _subordinate(rng):
    """Verb-last clause -> (German, English)."""
    subject, en_subject, plural = noun_phrase(rng, PERSONS, "nom", 0.15)
    if rng.random() < 0.5:
        state, en_state = rng.choice(STATES)
        if rng.random() < 0.5:
            verb, en_verb = ("sind", "are") if plural else ("ist", "is")
        else:
            verb, en_verb = ("waren", "were") if plural else ("war", "was")
        return f"{subject} {state} {verb}", f"{en_subject} {en_verb} {en_state}"
    forms, objects, en_objects = _predicate(rng)
    finite, last, en_verb = _verb(rng, forms, rng.choice(["present", "past", "perfect"]), plural)
    words = [subject, objects, last, finite]
    return " ".join(word for word in words if word), f"{en_subject} {en_verb} {en_objects}"


def sentence_pair(rng):
    """One sentence -> (German, English)."""
    kind = rng.random()
    if kind < 0.15:
        report, en_report = rng.choice(REPORTS)
        clause, en_clause = _subordinate(rng)
        return f"{report} {clause}.", f"{en_report} {en_clause}."
    german, english = _main_clause(rng)
    if kind < 0.4:
        joiner, en_joiner = rng.choice(CLAUSES)
        clause, en_clause = _subordinate(rng)
        german, english = f"{german}, {joiner} {clause}", f"{english} {en_joiner} {en_clause}"
    return f"{sentence(german)}.", f"{sentence(english)}."


def make(rng):
    """Two or three sentences to translate; the reference is the translation."""
    pairs = [sentence_pair(rng) for _ in range(rng.choice([2, 2, 3]))]
    german = " ".join(pair[0] for pair in pairs)
    english = " ".join(pair[1] for pair in pairs)
    order = rng.choice(ORDERS).format(text=german)
    return Example("translation", [order], [english], [english], keys=[pair[0] for pair in pairs])
