"""Generate the mini bench: its held-out questions, and the corpus the mini models learn.

Run:    python data/mini_bench/generate.py questions
        python data/mini_bench/generate.py corpus --num-conversations 1000 --seed 1 --output FILE
"""

import argparse
import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from data.mini_bench import (  # noqa: E402
    math_reasoning,
    multi_coding,
    multi_lessons,
    multi_puzzles,
    multi_stories,
    qa,
    rag,
    summarization,
    translation,
)

TOPICS = {
    "writing": multi_stories.writing,
    "roleplay": multi_stories.roleplay,
    "reasoning": multi_puzzles.reasoning,
    "math": multi_puzzles.math,
    "coding": multi_coding.coding,
    "extraction": multi_puzzles.extraction,
    "stem": multi_lessons.stem,
    "humanities": multi_lessons.humanities,
    "translation": translation.make,
    "summarization": summarization.make,
    "qa": qa.make,
    "math_reasoning": math_reasoning.make,
    "rag": rag.make,
}
MULTI_TURN = list(TOPICS)[:8]
# share of each topic in the corpus, in conversations; short and hard topics get more
WEIGHTS = {topic: 2 for topic in MULTI_TURN} | {
    "translation": 22,
    "summarization": 8,
    "qa": 12,
    "math_reasoning": 18,
    "rag": 8,
}
HELD_OUT_SEED = 76
QUESTIONS = HERE / "question.jsonl"


def held_out():
    """The 76 held-out examples, always the same: 2 a multi-turn topic, 12 of each other one."""
    rng = random.Random(HELD_OUT_SEED)
    examples, seen = [], set()
    for topic, make in TOPICS.items():
        wanted = 2 if topic in MULTI_TURN else 12
        found = []
        while len(found) < wanted:
            example = make(rng)
            fresh = not seen.intersection(example.held_out_keys())
            if fresh and example.reference:  # without a reference an answer cannot be judged
                found.append(example)
                seen.update(example.held_out_keys())
        examples += found
    return examples


def conversations(num, seed, shares=None):
    """Yield num examples (None: endless) for training, none of them a held-out question.

    shares: {topic: share} that differ from WEIGHTS.
    """
    reserved = {key for example in held_out() for key in example.held_out_keys()}
    rng = random.Random(seed)
    weights = WEIGHTS | (shares or {})
    topics, weights = list(weights), list(weights.values())
    done = 0
    while num is None or done < num:
        example = TOPICS[rng.choices(topics, weights)[0]](rng)
        if reserved.intersection(example.held_out_keys()):
            continue
        done += 1
        yield example


def write_questions():
    """Write question.jsonl, the held-out questions in Spec-Bench's form."""
    lines = []
    for number, example in enumerate(held_out(), start=1):
        line = {
            "question_id": number,
            "category": example.category,
            "turns": example.turns,
            "reference": example.reference,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    QUESTIONS.write_text("".join(lines), encoding="utf-8")
    print(f"{QUESTIONS}: {len(lines)} questions")


def write_corpus(num, seed, output):
    """Write num conversations in ShareGPT's form, a line each."""
    with open(output, "w", encoding="utf-8") as file:
        for number, example in enumerate(conversations(num, seed)):
            messages = []
            for turn, answer in zip(example.turns, example.answers):
                messages += [{"from": "human", "value": turn}, {"from": "gpt", "value": answer}]
            line = {"id": f"{example.category}_{seed}_{number}", "conversations": messages}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{output}: {num} conversations, none of them a held-out question")


def main():
    """Parse the command line and write what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("questions", help="rewrite question.jsonl")
    corpus = commands.add_parser("corpus", help="write a training corpus")
    corpus.add_argument("--num-conversations", type=int, required=True, help="how many lines")
    corpus.add_argument("--seed", type=int, default=1, help="seed of the generator")
    corpus.add_argument("--output", required=True, help="jsonl file to write")
    args = parser.parse_args()
    if args.command == "questions":
        write_questions()
        return
    if args.num_conversations < 1:
        parser.error("--num-conversations must be at least 1")
    try:
        write_corpus(args.num_conversations, args.seed, args.output)
    except OSError as error:
        parser.error(f"{args.output}: {error.strerror}")


if __name__ == "__main__":
    main()
