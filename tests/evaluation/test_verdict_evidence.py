"""What the verdicts of equal.py stand on: gaps, noise, the control, foreign files, the proof."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts, save_model
from harness_runs import answer, read, read_meta, write
from verdict_files import Planter

from evaluation.answers.meta import AnswerError
from evaluation.judging import control, proof
from evaluation.judging.gaps import turn_gaps, ulp_sizes
from evaluation.judging.noise import calibrate
from evaluation.judging.retokenised import could_begin, least_gap, token_texts
from evaluation.judging.verdicts import BUG, EXACT, SUSPECT, TIES, QuestionJudgement, file_verdict
from model.common.contract.sequence import EmptyDrafter
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target

DTYPES = ("float64", "float32", "bfloat16")


def random_ids(num, seed=1, vocab_size=97):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, vocab_size, (num,), generator=generator).tolist()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gaps_are_those_of_plain_forwards(family):
    # transformers takes some steps in float32 whatever the dtype
    model, plain = (make_model(family, dtype=torch.float64) for _ in range(2))
    plain.set_attn_implementation("eager")
    prompt, ids = make_prompts()[1], random_ids(30)
    found = turn_gaps(Target(model), prompt, ids, rival=(4, 7))
    for position, token in enumerate(ids):
        with torch.inference_mode():
            rows = torch.tensor([prompt + ids[:position]])
            logits = plain(input_ids=rows).logits[0, -1]
        probs = logits.softmax(-1)
        assert found.gaps[position] == pytest.approx(float(logits.max() - logits[token]), abs=1e-6)
        assert found.best[position] == int(logits.argmax())
        share = float(probs.max() - probs[token])
        assert found.probabilities[position] == pytest.approx(share, abs=1e-6)
        if position == 4:
            rival = float(logits.max() - logits[7])
            assert found.rival == (4, pytest.approx(rival, abs=1e-6))


def test_greedy_answers_have_no_gap_above_the_bound():
    for dtype in DTYPES:
        target = Target(make_model(dtype=getattr(torch, dtype), scale=0.08))
        prompt = make_prompts()[1]
        (turn,) = generate(target, EmptyDrafter(), [prompt], Sampler(), [0], StopRules(), 40)
        noise = calibrate(target, [(prompt, turn.output_ids)], dtype, 4, 64, 0)
        found = turn_gaps(target, prompt, turn.output_ids)
        assert len(found.gaps) == 40
        for gap, size in zip(found.gaps, found.ulp_size):
            assert gap <= noise.bound_at(size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ulps_are_the_distance_to_the_next_number(dtype):
    values = torch.tensor([0.3, 1.0, 1.5, -7.9, 1024.0], dtype=dtype)
    following = torch.nextafter(values.abs(), torch.tensor(float("inf"), dtype=dtype))
    assert torch.equal(ulp_sizes(values, dtype), following.double() - values.abs().double())


def test_noise_grows_as_the_precision_falls_and_is_seeded():
    texts = [(prompt, random_ids(30, seed)) for seed, prompt in enumerate(make_prompts(6))]
    found = {}
    for dtype in DTYPES:
        target = Target(make_model(dtype=getattr(torch, dtype), hidden_size=256, head_dim=64))
        found[dtype] = calibrate(target, texts, dtype, 5, 64, 0)
        assert found[dtype].positions == 64 and found[dtype].samples == 3 * 64
    assert 0 < found["float64"].bound < 1e-9
    assert found["float64"].bound < 1e-4 * found["float32"].bound
    at = {
        dtype: noise.bound_at(torch.finfo(getattr(torch, dtype)).eps)
        for dtype, noise in found.items()
    }
    assert at["float64"] < at["float32"] < at["bfloat16"] < 8
    again = calibrate(target, texts, "bfloat16", 5, 64, 0)
    assert again == found["bfloat16"]


@pytest.mark.parametrize("width", [1, 2, 3, 20])
def test_every_reading_scores_the_same_tokens(width):
    """In float64 a wrong row, parent or committed path would change margins by far more."""
    target = Target(make_model(dtype=torch.float64))
    noise = calibrate(target, [(make_prompts()[1], random_ids(25))], "float64", width, 64, 0)
    assert noise.positions == 24 and noise.maximum < 1e-9


def test_logits_that_are_no_numbers_are_refused():
    """NaN is neither above a bound nor below it."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(AnswerError, match="not finite"):
        turn_gaps(Target(model), make_prompts()[0], random_ids(5))


def test_idle_rows_change_nothing_in_float64():
    target = Target(make_model(dtype=torch.float64))
    prompt = make_prompts()[1]
    plain, idle = (
        generate(target, control.inert_drafter(n), [prompt], Sampler(), [0], StopRules(), 30)[0]
        for n in (0, 9)
    )
    assert plain.output_ids == idle.output_ids
    assert idle.accept_lengths == [1] * 29 and idle.drafted == [0] * 29


def test_a_file_that_differs_more_often_than_the_control_is_suspect():
    ties = [QuestionJudgement(i, "qa", False, TIES) for i in range(20)]
    found = {"questions": 24, "method_differ": 20, "control_differ": 2, "width": 5}
    for hits, verdict in ((20, SUSPECT), (4, TIES)):
        low, _ = control.newcombe(hits, 24, 2, 24)
        assert file_verdict(ties, {**found, "significant": low > 0}, None)[0] == verdict


@pytest.fixture(scope="module")
def planter(tmp_path_factory, question_file):
    """Beside vanilla answers of a tiny target in float32."""
    folder = tmp_path_factory.mktemp("float32")
    model = save_model(folder / "model", scale=0.08)
    answer("vanilla", model, question_file, folder / "vanilla.jsonl", "--model-id", "base")
    return Planter(model, question_file, folder / "vanilla.jsonl", "float32")


def test_the_control_is_run_where_all_gaps_are_ties(planter, tmp_path, capsys, monkeypatch):
    path = planter.planted(tmp_path / "m.jsonl", 1.5, 1e9)
    monkeypatch.setattr("evaluation.judging.noise.Noise.bound_at", lambda self, ulp: 1e9)
    status, (found,), out, _ = planter.judge(capsys, path, flags=("--control", "5", "--seed", "1"))
    run = found["control"]
    assert (status, found["verdict"]) == (0, TIES) and "control: 5 questions" in out
    assert (run["questions"], run["control_differ"], run["width"]) == (5, 0, 5)
    assert run["method_differ"] <= 1 and run["interval"][0] < 0 < run["interval"][1]


FOREIGN = ("--control", "0", "--dtype", "float32", "--template", "tokenizer")


def foreign(path, records, ids=True):
    """The same answers as another tool writes them: no times, no counts, no meta."""
    kept = ("index", "turns", "output_ids") if ids else ("index", "turns")
    lines = []
    for record in records:
        choices = [{name: choice[name] for name in kept} for choice in record["choices"]]
        lines.append({"question_id": record["question_id"], "choices": choices})
    write(path, lines)
    return path


def test_a_foreign_file_with_ids(planter, tmp_path, capsys):
    path = foreign(tmp_path / "f.jsonl", planter.records())
    where = ("--question-file", planter.question_file)
    status, (found,), _, err = planter.judge(capsys, path, flags=(*FOREIGN, *where, "--all"))
    assert (status, found["verdict"], len(found["questions"])) == (0, EXACT, 6)
    assert "read for its texts and ids alone" in err
    assert any("prompts could not be checked" in note for note in found["notes"])
    bug = planter.planted(tmp_path / "m.jsonl", 10, 1e9)
    path = foreign(tmp_path / "f.jsonl", read(bug))
    status, (found,), _, _ = planter.judge(capsys, path, flags=(*FOREIGN, *where))
    assert (status, found["verdict"]) == (1, BUG)


@pytest.mark.parametrize("left_out", ["--dtype", "--template", "--question-file"])
def test_what_a_foreign_file_lacks_is_asked_for(planter, tmp_path, capsys, left_out):
    records = planter.records()
    planter.set_ids(records[1], records[1]["choices"][0]["output_ids"][0][:5])
    path = foreign(tmp_path / "f.jsonl", records)
    flags = {"--dtype": "float32", "--template": "tokenizer"}
    flags["--question-file"] = planter.question_file
    del flags[left_out]
    words = [word for pair in flags.items() for word in pair]
    status, _, _, err = planter.judge(capsys, path, flags=words)
    assert status == 2 and f"give {left_out}" in err


def test_a_file_without_ids_is_tokenised_anew(planter, tmp_path, capsys):
    where = (*FOREIGN, "--question-file", planter.question_file)
    bug = read(planter.planted(tmp_path / "m.jsonl", 10, 1e9))
    path = foreign(tmp_path / "f.jsonl", bug, ids=False)
    status, _, _, err = planter.judge(capsys, path, flags=where)
    assert status == 2 and "--tokenizer-path" in err
    where = (*where, "--tokenizer-path", planter.model_dir)
    status, (found,), out, _ = planter.judge(capsys, path, flags=where)
    assert found["verdict"] in (SUSPECT, BUG) and status in (1, 3)
    assert "note: no token ids: texts re-tokenised" in out


def word_planter(folder, question_file):
    """A target whose tokenizer has letters and a word made of them."""
    model = save_model(folder / "model", words=("ab", "abc"), scale=0.08)
    answer("vanilla", model, question_file, folder / "vanilla.jsonl", "--model-id", "base")
    return Planter(model, question_file, folder / "vanilla.jsonl", "float32")


def test_tokenising_anew_is_told_from_a_bug(tmp_path, question_file):
    """A token that the text allows at the place excuses it, one that it does not allow does not."""
    planter = word_planter(tmp_path, question_file)
    tokenizer = planter.prompter.tokenizer
    texts = token_texts(tokenizer, planter.target.vocab_size)
    ids = tokenizer.convert_tokens_to_ids(["ab", "abc", "a"])
    assert [texts[i] for i in ids] == ["ab", "abc", "a"]
    assert texts[tokenizer.eos_token_id] is None
    assert could_begin("ab", "abc!", False) and not could_begin("ac", "abc!", False)
    assert could_begin(" ab", "abc!", True) and not could_begin(" ab", "abc!", False)
    assert could_begin("!\n", "!", False)


def least_gaps(planter, rest, forced):
    """least_gap of a text at the place where the target's best token is `forced`."""
    tokenizer = planter.prompter.tokenizer
    subject = SimpleNamespace(tokenizer=tokenizer)
    bias = torch.zeros(planter.target.vocab_size)
    bias[tokenizer.convert_tokens_to_ids(forced)] = 50.0
    head = planter.target.model.lm_head
    hook = head.register_forward_hook(lambda module, inputs, out: out + bias)
    try:
        prompt = tokenizer("hello").input_ids
        return least_gap(planter.target, subject, prompt, tokenizer(rest).input_ids, 0, {1})
    finally:
        hook.remove()


def test_the_least_gap_of_any_tokenisation(tmp_path, question_file):
    planter = word_planter(tmp_path, question_file)
    for forced in ("a", "ab", "abc"):
        assert least_gaps(planter, "abcx", forced) == 0  # any of them may have been committed
    assert least_gaps(planter, "xabc", "abc") > 40


def test_a_proof_does_not_excuse_a_file(planter, tmp_path, capsys):
    """The rerun is right, so the code is; the planted answer is still wrong."""
    path = planter.planted(tmp_path / "m.jsonl", 10, 1e9)
    status, (found,), out, _ = planter.judge(capsys, path, flags=("--control", "0", "--proof"))
    assert (status, found["verdict"]) == (1, BUG)
    assert found["proof"]["identical"] and found["proof"]["questions"] == 1
    assert "--dtype float32" in found["proof"]["command"]
    assert "the code is exact there" in out


def test_a_failed_proof_is_a_bug(planter, tmp_path, capsys, monkeypatch):
    path = planter.planted(tmp_path / "m.jsonl", 1.5, 1e9)
    monkeypatch.setattr("evaluation.judging.noise.Noise.bound_at", lambda self, ulp: 1e9)
    rerun = proof.answers_of

    def other_ids(command, path):
        questions = rerun(command, path)
        if "method.jsonl" in " ".join(command):
            for question in questions.values():
                question.choices[0].output_ids[0][-1] += 1
        return questions

    monkeypatch.setattr(proof, "answers_of", other_ids)
    flags = ("--control", "0", "--proof", "--proof-dtype", "float64")
    status, (found,), out, _ = planter.judge(capsys, path, flags=flags)
    assert [q["verdict"] for q in found["questions"]] == [TIES]
    assert (status, found["verdict"]) == (1, BUG)
    assert "proof: FAILED: answered again in float64, 1 of 1 questions differ" in out


def test_a_proof_needs_what_was_recorded(planter, tmp_path, capsys):
    meta = read_meta(planter.base)
    arguments = {key: value for key, value in meta.items() if key != "arguments"}
    path = planter.planted(tmp_path / "m.jsonl", 10, 1e9)
    path.with_suffix(".meta.json").write_text(json.dumps(arguments))
    flags = ("--proof", "--question-file", planter.question_file)
    status, (found,), _, err = planter.judge(capsys, path, flags=flags)
    assert found["verdict"] == BUG  # what was found without it stands
    assert status == 2 and "no meta records the arguments" in err
    path = planter.write(path, read(path), method="elsewhere")
    status, _, _, err = planter.judge(capsys, path, flags=("--proof",))
    assert status == 2 and "no method 'elsewhere' to run again" in err


def test_recorded_arguments_make_the_same_command():
    from model.common.args import make_parser
    from model.lookahead import inference_lookahead as script

    parser = make_parser("lookahead", script.__doc__, script.add_args)
    given = ["--model-path", "t", "--prompt-ngrams", "--batch-size", "2", "--temperature", "0"]
    recorded = vars(parser.parse_args(given))
    flags = proof.recorded_flags(parser, recorded)
    assert flags == ["--prompt-ngrams", "--batch-size", "2"]
    assert vars(parser.parse_args(["--model-path", "t", *flags])) == recorded
