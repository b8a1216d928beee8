"""How long equal.py --model-path --all takes: 480 questions of 200 tokens on the mini target.

Questions are mini_bench's first turns, repeated with new ids; answers are drawn tokens, since a
prefill takes as long for any ids. The verdict is therefore BUG, and it is not what is shown here.

Run:  python tests/bench/bench_equal.py            (--questions 48 for a quick look)
"""

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TARGET = ROOT / "data" / "mini_models" / "target"


def write_bench(folder, num_questions, num_tokens):
    """(question file, answer file) in `folder`; ids above the special ones, seeded."""
    from model.common.prompts.prompter import load_tokenizer

    tokenizer, draw = load_tokenizer(str(TARGET)), random.Random(0)
    source = ROOT / "data" / "mini_bench" / "question.jsonl"
    turns = [json.loads(line)["turns"][:1] for line in source.read_text("utf-8").splitlines()]
    questions, answers = [], []
    for number in range(num_questions):
        ids = [draw.randrange(16, len(tokenizer)) for _ in range(num_tokens)]
        asked = {"question_id": number, "category": "qa", "turns": turns[number % len(turns)]}
        questions.append(asked)
        choice = {"turns": [tokenizer.decode(ids)], "output_ids": [ids]}
        answers.append({"question_id": number, "choices": [choice]})
    paths = folder / "question.jsonl", folder / "answers.jsonl"
    for path, lines in zip(paths, (questions, answers)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return paths


def main():
    """Write the files, judge them, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=480, help="how many")
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, ...")
    args = parser.parse_args()
    from evaluation import equal

    with tempfile.TemporaryDirectory() as folder:
        questions, answers = write_bench(Path(folder), args.questions, args.tokens)
        flags = ["--model-path", str(TARGET), "--all", "--device", "cpu", "--num-threads", "1"]
        flags += ["--question-file", str(questions), "--template", "tokenizer", "--max-print", "0"]
        flags += ["--dtype", args.dtype, "--max-new-tokens", str(args.tokens)]
        written = io.StringIO()
        begin, processor = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(written):
            equal.main([str(answers), str(answers), *flags])
        seconds = time.perf_counter() - begin
        document = json.loads(written.getvalue().splitlines()[-1])
    judged = document["results"][0]["judgement"]["questions"]
    print(
        f"{len(judged)} questions, {sum(question['tokens'] for question in judged)} tokens judged"
        f" in {seconds:.1f} s ({time.process_time() - processor:.1f} s of processor time),"
        f" {args.dtype}, one thread"
    )


if __name__ == "__main__":
    main()
