"""speed.py from the command line: golden tables, refusals, labels, repeated runs."""

import json
import math
import os
import re
import time

import numpy as np
import pytest
from answer_samples import (
    DATA,
    assert_refused,
    base_lines,
    compared,
    line,
    meta,
    method_lines,
    report_of,
    run_tool,
    task,
    write,
    write_pair,
)

from evaluation.answers.meta import AnswerError
from evaluation.answers.reader import read_answers
from evaluation.speedup.comparison import compare

MARKDOWN = "--format", "markdown"
EAGLE, VANILLA = DATA / "spec_bench_eagle.jsonl", DATA / "spec_bench_vanilla.jsonl"
# task -> (speedup with new_tokens on both sides, mean accepted tokens) of the two golden files
GOLDEN = {
    "mt_bench": (2.568, 3.844),
    "translation": (1.812, 2.837),
    "summarization": (2.190, 3.306),
    "qa": (2.035, 3.112),
    "math_reasoning": (2.589, 3.918),
    "rag": (1.876, 3.211),
    "overall": (2.184, 3.579),
}


def speed(*args, **kwargs):
    return run_tool("evaluation/speed.py", *args, **kwargs)


def test_golden_spec_bench_pair():
    done = speed("--file-path", EAGLE, "--base-path", VANILLA, "--detail")
    assert done.returncode == 0
    (result,) = report_of(done)["results"]
    assert [row["task"] for row in result["tasks"]] == list(GOLDEN)
    for name, (ratio, accepted) in GOLDEN.items():
        row = task(result, name)
        assert row["speedup"]["mean_ratio"]["value"] == pytest.approx(ratio, abs=6e-4)
        assert row["mean_accepted"]["over_steps"] == pytest.approx(accepted, abs=6e-4)
        assert row["decode_speedup"] is None
    overall = task(result, "overall")["speedup"]
    assert overall["mean_ratio"]["low"] == pytest.approx(2.143, abs=0.004)
    assert overall["mean_ratio"]["high"] == pytest.approx(2.228, abs=0.005)
    assert overall["total_ratio"]["value"] == pytest.approx(2.432, abs=6e-4)
    assert overall["geometric_mean"]["value"] == pytest.approx(2.125, abs=6e-4)
    row = task(result, "overall")
    assert row["base_wall_s"] / row["wall_s"] == pytest.approx(2.447, abs=6e-4)
    identity = result["time_identity"]
    assert identity["base_step_ms"] == pytest.approx(19.46, abs=0.006)
    assert identity["parts_ms"]["step"] == pytest.approx(28.63, abs=0.006)
    assert "2.184 [2.14" in done.stdout and "total ratio" in done.stdout
    assert done.stderr.count("warning: ") == 4 and "Traceback" not in done.stderr


def test_missing_questions_are_refused_unless_common(tmp_path):
    base = write_pair(tmp_path)[1]
    short = write(tmp_path / "short.jsonl", method_lines()[:1], meta("m"))
    assert_refused(speed("--file-path", short, "--base-path", base), short, "1 question: 2")
    with pytest.raises(AnswerError, match="lacks 1 question: 2"):
        compared(base, short)
    done = speed("--file-path", short, "--base-path", base, "--common")
    assert (
        done.returncode == 0
        and "--common: left out, not in short.jsonl: 1 question: 2" in done.stdout
    )
    assert report_of(done)["results"][0]["questions"] == 1


def test_shared_settings_must_agree(tmp_path):
    method, base = write_pair(tmp_path, temperature=1.0, versions={"torch": "2.11.0"})
    args = ("--file-path", method, "--base-path", base)
    parts = ("temperature: 1.0, baseline 0.0", 'versions.torch: "2.11.0", baseline "2.13.0"')
    assert_refused(speed(*args), *parts)
    assert_refused(speed(*args, "--allow", "versions"), parts[0])
    assert_refused(speed(*args, "--allow", "tempreature"), "--allow tempreature: no such field")
    done = speed(*args, "--allow", "temperature,versions.torch")
    assert done.returncode == 0 and all(f"differs in {part}" in done.stdout for part in parts)


def test_a_meta_on_one_side_only_is_a_warning(tmp_path):
    method, base = write_pair(tmp_path)
    (tmp_path / "base.meta.json").unlink()
    done = speed("--file-path", method, "--base-path", base)
    assert done.returncode == 0
    assert f"warning: {base}: no .meta.json beside it" in done.stderr


def test_a_lossy_method_is_never_named_without_saying_so(tmp_path):
    method, base = write_pair(tmp_path, lossy=True)
    done = speed("--file-path", method, base, "--base-path", base)
    lines = done.stdout.splitlines()
    naming = [text for text in lines if re.search(r"\bm\b(?! \(lossy\))", text)]
    assert naming == [] and sum("m (lossy)" in text for text in lines) == 5
    assert "acceptance typical (lossy): the output may differ" in done.stdout
    row = speed("--file-path", method, "--base-path", base, *MARKDOWN).stdout.splitlines()[2]
    assert row.startswith("| m (lossy) |")
    assert report_of(done)["results"][0]["method"]["label"] == "m (lossy)"


def test_refusals_reach_the_command_line(tmp_path):
    method, base = write_pair(tmp_path)
    args = ("--base-path", base, "--file-path")
    assert_refused(speed(*args, tmp_path / "none.jsonl"), "none.jsonl: No such file")
    assert_refused(speed("--file-path", method), "either --base-path or --paired")
    assert_refused(speed(*args, method, "--resamples", "0"), "--resamples")
    assert_refused(speed(*args, method, *MARKDOWN, "--mean-report"), "--format markdown")
    assert_refused(speed(*args, method, "--mean-report"), "run_1")
    done = speed(*args, method, "--spec-bench-compat", "--tokenizer-path", tmp_path / "none")
    assert_refused(done, "--tokenizer-path")


def test_published_formula_with_a_real_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    words = {"<unk>": 0, "<s>": 1, **{f"t{i}": i for i in range(7, 12)}}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    (tmp_path / "tokenizer").mkdir()
    model.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    method, base = write_pair(tmp_path)
    args = ("--file-path", method, "--base-path", base, "--spec-bench-compat")
    done = speed(*args, "--tokenizer-path", tmp_path / "tokenizer")
    assert done.returncode == 0, done.stderr
    values = report_of(done)["results"][0]["spec_bench_compat"]
    assert values["overall"] == pytest.approx(11 / 6)  # a word a token, no end-of-sequence token
    assert "as published" in done.stdout
    missing = speed(*args)
    assert missing.returncode == 0 and "--tokenizer-path is missing" in missing.stdout


def test_mean_report_over_runs(tmp_path):
    for number, step_s in ((1, 0.25), (2, 0.75)):
        folder = tmp_path / f"run_{number}"
        write(folder / "base.jsonl", base_lines()[1:], meta("base", "vanilla"))
        write(folder / "m.jsonl", [line(2, "qa", [([2], [step_s])])], meta("m"))
    ways = [
        (tmp_path / "run_1" / "m.jsonl", tmp_path / "run_2" / "base.jsonl"),
        (tmp_path / "m.jsonl", tmp_path / "base.jsonl"),
        (tmp_path, tmp_path),
    ]
    for method, base in ways:
        done = speed("--file-path", method, "--base-path", base, "--mean-report")
        assert done.returncode == 0, done.stderr
        (average,) = report_of(done)["mean_report"]
        row = task(average, "overall")  # 4 and 2.4 tokens/s against 2
        assert average["runs"] == 2
        assert row["speedup_mean_ratio"] == pytest.approx({"mean": 1.6, "std": 0.4 * math.sqrt(2)})
        assert row["mean_accepted_over_steps"] == pytest.approx({"mean": 2, "std": 0})
        assert "1.600 +- 0.566" in done.stdout
    for name in ("base", "m"):  # a second run of another target
        foreign = json.dumps(meta(name, weights_sha256="bb"))
        (tmp_path / "run_2" / f"{name}.meta.json").write_text(foreign)
    done = speed("--file-path", ways[0][0], "--base-path", ways[0][1], "--mean-report")
    assert_refused(done, "weights_sha256", "run_2", "run_1")
    (tmp_path / "run_2" / "base.meta.json").write_text(json.dumps(meta("base", "vanilla")))
    (tmp_path / "run_2" / "m.jsonl").unlink()
    done = speed("--file-path", ways[0][0], "--base-path", ways[0][1], "--mean-report")
    assert_refused(done, "run_2/m.jsonl: No such file")


def test_markdown_rows_name_their_files(tmp_path):
    method, base = write_pair(tmp_path)
    done = speed("--file-path", method, base, "--base-path", base, *MARKDOWN)
    header, rule, row, base_row = done.stdout.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == base_row.count("|")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:8] == ["m", "-", "1.67x", "-", "2.00x", "-", "-", "1.500"]
    assert cells[8].startswith("1.833 [0.765, 4.071]") and "mini" in cells
    assert f"m.jsonl ({read_answers(method).sha256[:12]})" in cells
    assert report_of(done)["results"][1]["tasks"][-1]["speedup"]["mean_ratio"]["value"] == 1


def test_summary_and_another_working_folder(tmp_path):
    method, base = write_pair(tmp_path)
    lines = [line(1, "poems", [([4], [0.5])]), line(2, "qa", [([2], [0.5])])]
    other_base = [line(1, "poems", [([1] * 4, [0.5] * 4)]), base_lines()[1]]
    other_base[0]["model_id"] = "base"
    poems = write(tmp_path / "p.jsonl", lines), write(tmp_path / "pb.jsonl", other_base)
    assert task(compared(*poems), "poems")["name"] == "poems"
    done = speed("--file-path", "m.jsonl", "base.jsonl", "--base-path", "base.jsonl", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-2].split()[:3] == ["base", "2", "1.000"]


def test_a_large_file_is_reported_in_time(tmp_path):
    rng = np.random.default_rng(0)
    times = [float(t) for t in rng.uniform(1e-3, 2e-2, 1000)]
    lengths = [int(n) for n in rng.integers(1, 6, 1000)]
    record = line(0, "qa", [(lengths, times)])
    text = json.dumps(record)
    path = tmp_path / "m.jsonl"
    path.write_text(
        "".join(
            text.replace('"question_id": 0', f'"question_id": {i}', 1) + "\n" for i in range(480)
        )
    )
    start = time.process_time()
    answers = read_answers(path)
    result = compare(answers, answers, 10000, 0)
    assert task(result, "overall")["speedup"]["mean_ratio"]["value"] == 1
    assert time.process_time() - start < 5


def test_paired_takes_the_baseline_beside_each_file(tmp_path):
    method, base = write_pair(tmp_path)
    other = write(tmp_path / "other.jsonl", method_lines(), meta("m"))
    slow = [{**record, "choices": slower(record["choices"])} for record in base_lines()]
    base.rename(method.with_name(f"{method.stem}-paired-baseline.jsonl"))
    beside = base.with_name(f"{base.stem}.meta.json")
    beside.rename(method.with_name(f"{method.stem}-paired-baseline.meta.json"))
    done = speed("--file-path", method, other, "--paired")
    assert_refused(done, "other-paired-baseline.jsonl")
    write(tmp_path / "other-paired-baseline.jsonl", slow, meta("base"))
    done = speed("--file-path", method, other, "--paired")
    assert done.returncode == 0, done.stderr
    ratios = [
        task(result, "overall")["speedup"]["mean_ratio"]["value"]
        for result in report_of(done)["results"]
    ]
    assert ratios[1] == pytest.approx(2 * ratios[0])
    both = speed("--file-path", method, "--base-path", base, "--paired")
    assert_refused(both, "either --base-path or --paired")


def test_ids_of_any_kind_keep_the_files_order(tmp_path):
    """Whatever the order of Python's sets, in every tool that pairs answers."""
    ids, said = ["zeta", 7, "a/1", "B", "10", "9f"], set()
    for side, name in ((base_lines(), "base"), (method_lines(), "m")):
        lines = [{**side[0], "question_id": i} for i in ids]
        lines += [{**side[1], "question_id": f"only in {name} {i}"} for i in "cab"]
        write(tmp_path / f"{name}.jsonl", lines[::-1] if name == "m" else lines)
    base, method = tmp_path / "base.jsonl", tmp_path / "m.jsonl"
    both = ["--file-path", method, "--base-path", base, "--resamples", 50]
    for seed in "123":
        env = {**os.environ, "PYTHONHASHSEED": seed}
        runs = [
            speed(*both, "--common", env=env),
            run_tool("evaluation/equal.py", base, method, env=env),
            run_tool("evaluation/audit_answers.py", *both, "--places", 9, env=env),
        ]
        said.add("".join(done.stdout for done in runs))
    (text,) = said
    listed = ", ".join(f"only in base {i}" for i in "cab")
    assert f"--common: left out, not in m.jsonl: 3 questions: {listed}" in text
    assert text.index("question only in base c (qa)") < text.index("question only in base a (qa)")
    assert "question 9f, baseline zeta; question 10, baseline 7; question B, baseline a/1" in text


def slower(choices):
    """Choices of half the speed."""
    return [{**choice, "wall_time": [2 * s for s in choice["wall_time"]]} for choice in choices]
