"""How long equal.py --model-path --all takes: 480 questions of 200 tokens on the mini target.

Questions are mini_bench's first turns, repeated with new ids; answers are drawn tokens, since a
prefill takes as long for any ids. The verdict is therefore BUG, and it is not what is shown here.

--noise: are the bound's few positions enough? Windows of greedy answers to --questions of the mini
bench are read as noise.py reads them; then the bound is made of a drawn few, over and over, and all
changes are held to it. At a near-tie such a change would be an honest file's gap.

Run:  python tests/bench/bench_equal.py            (--questions 48 for a quick look)
      python tests/bench/bench_equal.py --noise --questions 38 --tokens 64 --dtype bfloat16
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

from evaluation.judging.verdicts import MULTIPLE  # noqa: E402

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


def greedy_texts(target, num_questions, num_tokens):
    """Texts of the target's own answers to mini_bench's first turns."""
    from evaluation.judging.readings import Text
    from model.common.contract.sequence import EmptyDrafter
    from model.common.loop.decode import generate
    from model.common.loop.sampling import Sampler
    from model.common.prompts.prompter import Prompter, load_tokenizer

    prompter = Prompter(load_tokenizer(str(TARGET)))
    source = ROOT / "data" / "mini_bench" / "question.jsonl"
    lines = source.read_text("utf-8").splitlines()
    turns = [json.loads(line)["turns"] for line in lines[:: -(-len(lines) // num_questions)]]
    prompts = [prompter.render(each, []) for each in turns]
    stop = prompter.stop_rules(target.model.generation_config)
    given = target, EmptyDrafter(), prompts, Sampler(), list(range(len(prompts))), stop, num_tokens
    return [Text(p, done.output_ids) for p, done in zip(prompts, generate(*given, num_slots=8))]


def noise_report(args, draws=10_000):
    """How often a change between two readings is above a bound made of 64 drawn positions."""
    import torch

    from evaluation.judging import noise
    from model.common.target.loading import load_target

    torch.set_num_threads(1)
    target = load_target(str(TARGET), args.dtype, "cpu", "eager")
    texts, generator = greedy_texts(target, args.questions, args.tokens), torch.Generator()
    largest, changes, sizes, odd = [], [], [], 0  # of each window; of each position
    for window in noise.sample_windows(texts, 10**6, 0):
        found, ulp, limit = noise.margin_changes(target, window, args.width, generator)
        odd += noise.oddest(window, found, ulp, limit)[0] > 1
        del found[noise.OWN]
        changes.append(torch.stack(list(found.values())).amax(0))
        sizes.append(ulp[1:])
        largest.append(changes[-1].max())
    largest, changes, sizes = torch.stack(largest), torch.cat(changes), torch.cat(sizes)
    few = 64 // noise.WINDOW
    drawn = torch.rand(draws, len(largest), generator=generator).topk(few, 1).indices
    bounds = torch.maximum(
        noise.FACTOR * largest[drawn].amax(1, keepdim=True), noise.FLOOR_ULPS * sizes
    )
    above, far = ((changes > times * bounds).double().mean() for times in (1, MULTIPLE))
    print(
        f"{args.dtype}, steps of 1+{args.width} rows: {len(changes)} positions, largest change"
        f" {changes.max():.3g} ({(changes / sizes).max():.3g} ulps); no rounding: {odd} of"
        f" {len(largest)} windows; of the changes {100 * above:.4f} % are above a bound of"
        f" {few} windows, {100 * far:.4f} % above {MULTIPLE:g} bounds"
    )


def main():
    """Write the files, judge them, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=480, help="how many")
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, ...")
    parser.add_argument("--noise", action="store_true", help="the bound in place of the time")
    parser.add_argument("--width", type=int, default=5, help="rows beside the root, with --noise")
    args = parser.parse_args()
    if args.noise:
        return noise_report(args)
    from evaluation import equal

    with tempfile.TemporaryDirectory() as folder:
        questions, answers = write_bench(Path(folder), args.questions, args.tokens)
        flags = ["--model-path", str(TARGET), "--all", "--device", "cpu", "--num-threads", "1"]
        flags += ["--question-file", str(questions), "--template", "tokenizer", "--max-print", "0"]
        flags += ["--dtype", args.dtype, "--max-new-tokens", str(args.tokens)]
        report = Path(folder) / "report.json"
        begin, processor = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            equal.main([str(answers), str(answers), *flags, "--json", str(report)])
        seconds = time.perf_counter() - begin
        document = json.loads(report.read_text(encoding="utf-8"))
    judged = document["results"][0]["judgement"]["questions"]
    print(
        f"{len(judged)} questions, {sum(question['tokens'] for question in judged)} tokens judged"
        f" in {seconds:.1f} s ({time.process_time() - processor:.1f} s of processor time),"
        f" {args.dtype}, one thread"
    )


if __name__ == "__main__":
    main()
