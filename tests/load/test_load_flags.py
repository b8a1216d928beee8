"""Flags of a load that do not fit: one line that names them, exit code 2, nothing written."""

import pytest
from harness_runs import refused

CASES = [
    (["--rate", 0, "--duration", 1], ["--rate", "0", "above 0"]),
    (["--rate", -1, "--duration", 1], ["--rate"]),
    (["--rate", "nan", "--duration", 1], ["--rate", "nan"]),
    (["--rate", "1,x", "--duration", 1], ["--rate", "x"]),
    (["--rate", "1,,2", "--duration", 1], ["--rate"]),
    (["--rate", "1,1.0", "--duration", 1], ["--rate", "twice"]),
    (["--rate", 1], ["--duration", "--num-prompts"]),
    (["--rate", 1, "--duration", 1, "--num-prompts", 5], ["--duration", "--num-prompts"]),
    (["--rate", "inf", "--duration", 1], ["--rate inf", "--duration"]),
    (["--rate", "inf", "--num-prompts", 3, "--burstiness", 1], ["--rate inf", "--burstiness"]),
    (["--rate", 1, "--duration", 0], ["--duration", "0"]),
    (["--rate", 1, "--duration", "inf"], ["--duration", "inf"]),
    (["--rate", 0.01, "--duration", 1], ["--rate 0.01", "no request"]),
    (["--rate", 1e9, "--duration", 1e6], ["1,000,000 requests"]),
    (["--rate", "1,2", "--duration", 1], ["--rate", "--answer-file"]),
    (["--duration", 5], ["--duration", "--rate"]),
    (["--num-prompts", 5, "--duration", 5], ["--duration", "--rate"]),
    (["--num-prompts", 0], ["--num-prompts", "0"]),
    (["--num-prompts", 5, "--burstiness", 1], ["--burstiness", "--rate"]),
    (["--rate", 1, "--duration", 1, "--burstiness", 0], ["--burstiness", "0"]),
    (["--concurrency", 4], ["--concurrency", "--num-prompts"]),
    (["--concurrency", 0, "--num-prompts", 4], ["--concurrency", "0"]),
    (["--concurrency", 4, "--num-prompts", 9, "--rate", 1], ["--rate", "--concurrency"]),
    (["--trace", "x", "--rate", 1, "--duration", 1], ["--rate", "--trace"]),
    (["--trace", "nowhere.txt"], ["--trace nowhere.txt"]),
    (["--load-seed", 1], ["--load-seed", "--rate"]),
    (["--num-prompts", 1, "--load-seed", -1], ["--load-seed", "-1"]),
    (["--prompt-min-length", 5], ["--prompt-min-length", "--num-prompts"]),
    (["--num-prompts", 1, "--prompt-min-length", 9, "--prompt-max-length", 8], ["9", "8"]),
    (["--num-prompts", 1, "--prompt-min-length", 90000], ["no prompt", "90000"]),
    (["--num-prompts", 1, "--max-load-lines", 9], ["--max-load-lines", "--sharegpt-dir"]),
    (["--num-prompts", 1, "--sharegpt-dir", "x"], ["--sharegpt-dir", "--question-file"]),
    (["--num-prompts", 1, "--num-choices", 2], ["--num-choices"]),
    (["--num-prompts", 1, "--paired", 4], ["--paired"]),
    (["--num-prompts", 1, "--history", "x.jsonl"], ["--history"]),
    (["--num-prompts", 1, "--num-gpus-total", 2], ["--num-gpus-total"]),
]


@pytest.mark.parametrize("flags, words", CASES, ids=lambda value: " ".join(map(str, value)))
def test_flags(capfd, paths, flags, words):
    line = refused(capfd, paths, *flags)
    assert line.startswith("inference_pld: ")
    for word in words:
        assert word in line
    assert not (paths["tmp"] / "a.jsonl").exists()


def test_an_engine_without_slots(capfd, paths):
    line = refused(capfd, paths, "--engine", "hf", "--num-prompts", 1, method="vanilla")
    assert "--engine hf" in line and "load" in line
