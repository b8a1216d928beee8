"""Prompts to train heads on: 3,968 in Spec-Bench's six categories, none of them in Spec-Bench.

Sources, each at a pinned commit: openai/grade-school-math (GSM8K, MIT), yizhongw/self-instruct
(Apache-2.0: its seed tasks, its user-oriented instructions, and T0's templates over CNN/DailyMail,
SAMSum, Quoref, ROPES, DuoRC, QuaRTz, WikiBio, TREC, HotpotQA, SciQ, WikiQA, SocialIQA, CosmosQA),
multi30k/dataset (task 1, German). Everything is drawn by one generator, in the order of records(),
so that the file is the same everywhere, and its sha256 is pinned.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from pathlib import Path
from typing import NamedTuple

from data.fetching import prompt_sources as sources
from data.fetching.web import DownloadError, download, is_there, sha256_of

SEED = 0
MAX_WORDS = 700
MIN_LETTERS = 28
NUM_MATHS, NUM_PARAGRAPHS, NUM_QUESTIONS, NUM_SENTENCES = 800, 800, 700, 450
END_OF_ARTICLE = 100  # letters; articles that end alike are one, or share an agency's closing lines
SECOND_TURNS = (
    "Rewrite your previous answer in fewer words.",
    "Explain your answer step by step.",
    "Give another, different answer.",
    "Now say the same as a list of short points.",
    "Which part of your answer is the most important, and why?",
    "Rewrite your answer for a ten year old.",
)


class Prompt(NamedTuple):
    """One record of the file but for its id."""

    category: str
    turns: list[str]
    source: str


def make(host: str, output: Path) -> str:
    """Fetch the sources below output's folder and write the prompts; returns a line about them.

    host: serves files as raw.githubusercontent.com does. Sources that are there are not fetched.
    """
    if output.is_dir():
        raise DownloadError(f"{output}: a folder; --output names a file")
    if is_there(output, sources.PROMPTS):
        return f"{output}: already there, sha256 verified"
    if output.exists():
        raise DownloadError(f"{output}: a file with another sha256 is there; remove it")
    folder = output.parent / "sources"
    for source in every_source():
        if download(source.address(host), source.published, folder / source.place):
            print(f"fetched {source.place}", flush=True)
    lines = [
        json.dumps({"question_id": i, **prompt._asdict()}, ensure_ascii=False)
        for i, prompt in enumerate(prompts_of(folder), start=1)
    ]
    part = output.with_name(output.name + ".part")
    part.write_bytes("".join(line + "\n" for line in lines).encode())
    if not is_there(part, sources.PROMPTS):
        raise DownloadError(
            f"{part}: made of the right sources, yet its sha256 is {sha256_of(part)}, expected "
            f"{sources.PROMPTS.sha256}"
        )
    os.replace(part, output)
    return f"{output}: {len(lines)} prompts, sha256 verified"


def every_source() -> list[sources.Source]:
    """All files that the prompts are made from."""
    own = [sources.MATHS, sources.GERMAN, sources.SEED_TASKS, sources.USER_TASKS]
    return own + list(sources.TEMPLATES.values())


def prompts_of(folder: Path) -> list[Prompt]:
    """The prompts that a folder of sources makes, in their order: one generator draws it all."""
    draw = random.Random(SEED)
    made = maths(folder, draw)
    made += articles(folder, draw)
    made += dialogues(folder)
    for category, names, number in (
        ("rag", sources.PARAGRAPHS, NUM_PARAGRAPHS),
        ("qa", sources.QUESTIONS, NUM_QUESTIONS),
    ):
        pool = [Prompt(category, [text], name) for name in names for text in texts(folder, name)]
        draw.shuffle(pool)
        made += pool[:number]
    made += translations(folder, draw)
    made += conversations(folder, draw)
    made = [prompt for prompt in made if len(prompt.turns[0].split()) <= MAX_WORDS]
    draw.shuffle(made)
    return made


def maths(folder: Path, draw: random.Random) -> list[Prompt]:
    """GSM8K's problems."""
    pool = [record["question"].strip() for record in records(folder, sources.MATHS)]
    draw.shuffle(pool)
    return [Prompt("math_reasoning", [text], "gsm8k train") for text in pool[:NUM_MATHS]]


def articles(folder: Path, draw: random.Random) -> list[Prompt]:
    """Every article once, under one of the templates."""
    pool = [(name, text) for name in sources.ARTICLES for text in texts(folder, name)]
    draw.shuffle(pool)
    first = {}  # by the article's end: its first prompt
    for name, text in pool:
        source = name.replace("cnn_dailymail_3_0_0_", "cnn_dailymail ")
        first.setdefault(text[-END_OF_ARTICLE:], Prompt("summarization", [text], source))
    return list(first.values())


def dialogues(folder: Path) -> list[Prompt]:
    """SAMSum's dialogues under all templates."""
    pool = [text for name in sources.DIALOGUES for text in texts(folder, name)]
    return [Prompt("summarization", [text], "samsum") for text in pool]


def translations(folder: Path, draw: random.Random) -> list[Prompt]:
    """German sentences, asked for as Spec-Bench does; of the file's lines the last is empty."""
    with gzip.open(folder / sources.GERMAN.place, "rt", encoding="utf-8", newline="") as file:
        lines = file.read().split("\n")
    drawn = draw.sample(lines, min(NUM_SENTENCES, len(lines)))
    asked = [f"Translate German to English: {line.strip()}" for line in drawn]
    return [Prompt("translation", [text], "multi30k task1 train") for text in asked]


def conversations(folder: Path, draw: random.Random) -> list[Prompt]:
    """Instructions with their input, and a second turn that fits any answer."""
    made = []
    for source, name in (
        (sources.SEED_TASKS, "self-instruct seed tasks"),
        (sources.USER_TASKS, "self-instruct user oriented"),
    ):
        for task in records(folder, source):
            text = clean(f"{task['instruction']}\n{task['instances'][0]['input']}")
            turns = [text, draw.choice(SECOND_TURNS)]
            if len(text) >= MIN_LETTERS:
                made.append(Prompt("writing", turns, name))
    return made


def texts(folder: Path, template: str) -> list[str]:
    """The prompts of a template's file."""
    found = records(folder, sources.TEMPLATES[template])
    return [clean(record["prompt"]) for record in found]


def records(folder: Path, source: sources.Source) -> list[dict]:
    """The JSON lines of a source."""
    content = (folder / source.place).read_text(encoding="utf-8")
    return [json.loads(line) for line in content.split("\n") if line]


def clean(text: str) -> str:
    """Without empty lines and spaces at the ends of lines: "a \\n\\n b\\n" -> "a\\n b"."""
    return re.sub(r"\s*\n", "\n", text).strip()
