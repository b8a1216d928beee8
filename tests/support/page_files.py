"""Answer files of a small run in two settings, and texts that a careless page would run."""

import json
import random

from answer_samples import meta, write

CATEGORIES = ("qa", "rag")
QUESTIONS = 20
START = 1.7e9
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "\"'><svg onload=window.hacked=1>",
    "<!-- <script>",
    "{{script}} ${window.hacked = 1} `${window.hacked = 1}`",
    "javascript:window.hacked=1",
    "&lt;script&gt;window.hacked = 1&lt;/script&gt;",
    "\u2028window.hacked = 1\u2029",
    "\x1b[31mred\x1b]0;title\x07\u202eevil",
    "__proto__",
    "half \ud800",
)


def record(number, name, ids, lengths, step_s, rng, **facts):
    """One line: a turn of `ids` in steps of `lengths` tokens, some step_s seconds each."""
    prefill_s = facts.get("prefill_s", 0.05)
    ends, moment = [], prefill_s
    for _ in lengths:
        moment += step_s * rng.uniform(0.9, 1.1)
        ends.append(round(moment, 7))
    parts = {stage: [[step_s * share] * len(lengths)] for stage, share in facts["stages"].items()}
    choice = {
        "index": 0,
        "turns": [facts.get("text", " ".join(f"w{i}" for i in ids))],
        "decoding_steps": [len(lengths)],
        "new_tokens": [len(ids)],
        "wall_time": [ends[-1]],
        "accept_lengths": lengths,
        "output_ids": [ids],
        "prompt_tokens": [11],
        "finish_reason": [facts.get("finish", "stop")],
        "prefill_s": [prefill_s],
        "begin_s": [START + 10 * number],
        "slot": [0],
        "recompiled": [0],
        "drafted": [[facts["drafted"]] * len(lengths)],
        "depth": [[min(4, facts["drafted"])] * len(lengths)],
        "step_end_s": [ends],
        **parts,
    }
    line = {"question_id": number, "category": facts.get("category", CATEGORIES[number % 2])}
    return line | {"answer_id": "x", "model_id": name, "choices": [choice], "tstamp": 0.0}


def lines(name, most, step_s, seed, **facts):
    """Lines of all questions; a step commits 1 to `most` tokens."""
    rng, found = random.Random(seed), []
    facts = {"drafted": 0 if most == 1 else 5} | facts
    facts["stages"] = {"draft_s": 0.2, "verify_s": 0.6, "commit_s": 0.1}
    for number in range(QUESTIONS):
        ids, lengths = list(range(2, 30 + number)), []
        while sum(lengths) < len(ids) - 1:
            lengths.append(min(rng.randint(1, most), len(ids) - 1 - sum(lengths)))
        found.append(record(number, name, ids, lengths, step_s, rng, **facts))
    return found


def own_meta(name, method, **shared):
    """A meta whose step has a bound."""
    lossy = shared.pop("lossy", False)
    found = meta(name, method, lossy, **{"bench_name": "bench", "runtime": "eager"} | shared)
    kv = [{"layers": 1, "bytes_per_token": 1e3, "window": None}]
    reads = {"weight_bytes": {"float32": 1e7}, "embedding_row_bytes": 0, "num_layers": 1, "kv": kv}
    found["environment"]["bandwidth"] = {"unit": "GB/s", "read": 10.0}
    return found | {"step_reads": reads, "num_questions": QUESTIONS}


def make_run(folder):
    """Files by name: two baselines and three methods, and two files of another temperature."""
    made = {}

    def add(name, method, most, step_s, seed, change=None, **shared):
        found = lines(name, most, step_s, seed)
        if change:
            change(found)
        made[name] = write(folder / f"{name}.jsonl", found, own_meta(name, method, **shared))

    add("vanilla", "vanilla", 1, 0.02, 0)
    add("vanilla-compile", "vanilla", 1, 0.015, 1, runtime="compile")
    add("fast", "eagle2", 5, 0.025, 2)
    add("near", "eagle3", 5, 0.0255, 3)
    add("slow", "pld", 2, 0.04, 4, differ)
    add("typical", "medusa", 4, 0.03, 5, lossy=True)
    add("vanilla-hot", "vanilla", 1, 0.02, 6, temperature=0.6)
    add("fast-hot", "eagle2", 4, 0.025, 7, temperature=0.6)
    pairs = lines("fast-paired-baseline", 1, 0.0205, 8)[::2]
    known = own_meta("fast-paired-baseline", "vanilla") | {"pairs_of": "fast"}
    write(folder / "fast-paired-baseline.jsonl", pairs, known)
    return made


def make_paired_run(folder):
    """Files by name of runs with --paired 1, of a machine that halved its speed after the first.

    "even" is half as fast as "ahead" and so are its pairs; "behind" is as fast as "even", of pairs
    that are as fast as those of "ahead".
    """
    made = {}
    for seed, (name, method, step_s, base_step_s, rate) in enumerate(
        (
            ("ahead", "eagle2", 0.02, 0.02, 10.0),
            ("even", "eagle3", 0.04, 0.04, 5.0),
            ("behind", "pld", 0.04, 0.02, 10.0),
        )
    ):
        pairs, prefill = f"{name}-paired-baseline", {"prefill_s": 0.5 / rate}
        known = own_meta(pairs, "vanilla") | {"pairs_of": name}
        known["environment"]["bandwidth"]["read"] = rate
        write(folder / f"{pairs}.jsonl", lines(pairs, 1, base_step_s, 400 + seed, **prefill), known)
        found = lines(name, 3, step_s, 300 + seed, **prefill)
        made[name] = write(folder / f"{name}.jsonl", found, own_meta(name, method))
    return made


def differ(found):
    """Another token in the middle of question 3's answer."""
    (choice,) = found[3]["choices"]
    choice["output_ids"][0][7] = 90
    choice["turns"][0] = choice["turns"][0].replace("w9 ", "w90 ")


def hostile_files(folder, tokenizer):
    """(files, question file) in which every text is one of HOSTILE."""
    files, count = [], len(HOSTILE)
    rng, stages = random.Random(0), {"draft_s": 0.2, "verify_s": 0.6, "commit_s": 0.1}
    for place, method in enumerate(("vanilla", "pld")):
        name = f"{method} {HOSTILE[2 * place]}"
        found = []
        for number, text in enumerate(HOSTILE):
            shown = text if place == 0 else f"{text} otherwise"
            ids = tokenizer.encode(shown.encode("utf-8", "replace").decode())
            lengths = [1] * (len(ids) - 1)
            other = {"text": shown, "stages": stages, "drafted": place * 3, "finish": text}
            other["category"] = text
            one = record(number, name, ids, lengths, 0.02, rng, **other)
            found.append(one | {"question_id": f"{text} {number}"})
        found.append(found[0] | {"question_id": "failed", "choices": [], "error": HOSTILE[1]})
        known = own_meta(name, method, target=HOSTILE[1], bench_name=HOSTILE[3])
        files.append(write(folder / f"{method}.jsonl", found, known))
    asked = folder / "questions.jsonl"
    with asked.open("w") as out:
        for number, text in enumerate(HOSTILE):
            question = {"question_id": f"{text} {number}", "turns": [text, HOSTILE[count - 2]]}
            out.write(json.dumps(question) + "\n")
    return files, asked
