"""Edits that a forger makes to the stored files of a leaderboard row: edit(records, meta)."""

from board_runs import slower, total_s


def faster(records, meta):
    slower(records, 0.8)


def faster_run(records, meta):
    """Its process says that it decoded for as long; the turns begin where they did."""
    before = total_s(records)
    slower(records, 0.8)
    meta["run_s"]["decode"] = round(meta["run_s"]["decode"] - before + total_s(records), 3)


def faster_of_nowhere(records, meta):
    slower(records, 0.8)
    del meta["run_s"]


def faster_of_workers(records, meta):
    slower(records, 0.8)
    meta["arguments"]["num_gpus_total"] = 2 * meta["arguments"]["num_gpus_per_model"]


def other_ids(records, meta):
    (choice,) = records[2]["choices"]
    choice["output_ids"][0][3] += 1


def slow_baseline(records, meta):
    slower(records, 1.3)
    meta["run_s"]["decode"] = total_s(records)


def slower_baseline(records, meta):
    """By less than a drift that is marked; its process has decoded for as long."""
    slower(records, 1.09)
    meta["run_s"]["decode"] = total_s(records)


def baseline_of_pairs(records, meta):
    """Of pairs nothing is held to run_s, which is of the method's answers, too."""
    slower(records, 1.09)
    meta["pairs_of"] = "mini-pld"


def other_questions(records, meta):
    name = str(records[0]["question_id"])
    meta["questions"][name] = "0" * 16 + meta["questions"][name][16:]


def cut_answer(records, meta):
    """The longest answer ends before its last step's tokens, as if it had stopped there."""
    choice = max((r["choices"][0] for r in records), key=lambda c: c["decoding_steps"][-1])
    kept = choice["accept_lengths"].pop()
    choice["decoding_steps"][-1] -= 1
    choice["new_tokens"][-1] -= kept
    del choice["output_ids"][-1][-kept:]
    for name in ("drafted", "depth", "draft_s", "verify_s", "commit_s", "step_end_s"):
        choice[name][-1].pop()
    choice["wall_time"][-1] = choice["step_end_s"][-1][-1]


def without_the_word(records, meta):
    meta |= {"lossy": False, "acceptance": "exact sampling"}


def of_another_time(records, meta):
    slower(records, 1.2)


def renamed(records, meta):
    meta["method"] = "eagle3"


def cheap_verification(records, meta):
    """Price and shares alone: no turn takes longer or shorter."""
    for choice in (choice for record in records for choice in record["choices"]):
        choice["verify_s"] = [[0.5 * s for s in turn] for turn in choice["verify_s"]]


def other_text(records, meta):
    records[1]["choices"][0]["turns"][0] = "No."


FORGERIES = {  # run, side, edit, what a forger who makes hashes and numbers fit is found by
    "edited time": ("pld", "method", faster, "times do not fit: its turns take"),
    "edited time and sum": ("pld", "method", faster_run, "times do not fit: its turns take"),
    "edited time, no sum": ("pld", "method", faster_of_nowhere, "times are missing: run_s"),
    "edited time of workers": ("pld", "method", faster_of_workers, "times do not fit: its turns"),
    "slower baseline": ("pld", "baseline", slower_baseline, "times do not fit"),
    "baseline as pairs": ("pld", "baseline", baseline_of_pairs, "not those beside it"),
    "edited ids": ("pld", "method", other_ids, "nobody judged why"),
    "swapped baseline": ("pld", "baseline", slow_baseline, "drifted"),
    "other questions": ("pld", "method", other_questions, "not of the bench's question set"),
    "cut answers": ("pld", "method", cut_answer, "nobody judged why"),
    "lossy rule": ("medusa", "method", without_the_word, "lossy without the word"),
    "drifted run": ("pld", "pairs", of_another_time, "drifted"),
    "renamed method": ("pld", "method", renamed, "not a run of eagle3"),
    "cheap verification": ("pld", "method", cheap_verification, "% of its steps are in none of"),
    "cheap price": ("pld", "method", cheap_verification, "price of verification 0."),
    "other text": ("pld", "method", other_text, "1 answers have the baseline's ids and another"),
}
