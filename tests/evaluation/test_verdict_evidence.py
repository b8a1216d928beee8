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
from evaluation.judging.noise import WINDOW, calibrate, sample_windows, window_at
from evaluation.judging.readings import Text
from evaluation.judging.retokenised import could_begin, least_gap, token_texts
from evaluation.judging.verdicts import BUG, CANNOT, EXACT, SUSPECT, TIES, file_verdict
from model.common.contract.sequence import EmptyDrafter
from model.common.loop.decode import generate
from model.common.loop.penalties import NO_PENALTIES, Penalties
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target

DTYPES = ("float64", "float32", "bfloat16")


def random_ids(num, seed=1, vocab_size=97):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, vocab_size, (num,), generator=generator).tolist()


@pytest.mark.parametrize("family, penalty", [("llama", 1.0), ("gemma2", 1.0), ("llama", 1.3)])
def test_gaps_are_those_of_plain_forwards(family, penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    # transformers takes some steps in float32 whatever the dtype
    model, plain = (make_model(family, dtype=torch.float64) for _ in range(2))
    plain.set_attn_implementation("eager")
    prompt, ids = make_prompts()[1], random_ids(30)
    texts = [Text(make_prompts()[i], random_ids(n, n)) for i, n in ((0, 5), (2, 41))]
    texts.insert(1, Text(prompt, ids, rival=(4, 7), penalties=Penalties(repetition=penalty)))
    every = turn_gaps(Target(model), texts)  # side by side in three slots
    assert [len(gaps.gaps) for gaps in every] == [5, 30, 41]
    found = every[1]
    for position, token in enumerate(ids):
        with torch.inference_mode():
            rows = torch.tensor([prompt + ids[:position]])
            logits = plain(input_ids=rows).logits[:, -1]
        (logits,) = RepetitionPenaltyLogitsProcessor(penalty)(rows, logits)
        probs = logits.softmax(-1)
        assert found.gaps[position] == pytest.approx(float(logits.max() - logits[token]), abs=1e-6)
        assert found.best[position] == int(logits.argmax())
        share = float(probs.max() - probs[token])
        assert found.probabilities[position] == pytest.approx(share, abs=1e-6)
        if position == 4:
            assert found.rival_gap == pytest.approx(float(logits.max() - logits[7]), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ulps_are_the_distance_to_the_next_number(dtype):
    values = torch.tensor([0.3, 1.0, 1.5, -7.9, 1024.0], dtype=dtype)
    following = torch.nextafter(values.abs(), torch.tensor(float("inf"), dtype=dtype))
    assert torch.equal(ulp_sizes(values, dtype), following.double() - values.abs().double())


def test_noise_grows_as_the_precision_falls_and_is_seeded():
    texts = [Text(prompt, random_ids(30, seed)) for seed, prompt in enumerate(make_prompts(6))]
    windows, found = sample_windows(texts, 64, 0), {}
    assert windows == sample_windows(texts, 64, 0) != sample_windows(texts, 64, 1)
    for dtype in DTYPES:
        target = Target(make_model(dtype=getattr(torch, dtype), hidden_size=256, head_dim=64))
        found[dtype] = calibrate(target, windows, dtype, 5, 0)
        size = sum(window.end - window.begin for window in windows)
        assert (found[dtype].positions, found[dtype].samples) == (size, 3 * size)
        assert 64 <= size < 72 and found[dtype].odd is None
    assert 0 < found["float64"].bound < min(1e-9, 1e-4 * found["float32"].bound)
    at = [found[d].bound_at(torch.finfo(getattr(torch, d)).eps) for d in DTYPES]
    assert at == sorted(at) and at[-1] < 8
    assert calibrate(target, windows, "bfloat16", 5, 0) == found["bfloat16"]


@pytest.mark.parametrize("width", [1, 2, 3, 20])
def test_every_reading_scores_the_same_tokens(width):
    """In float64 a wrong row, parent or committed path would change margins by far more."""
    target = Target(make_model(dtype=torch.float64))
    windows = sample_windows([Text(make_prompts()[1], random_ids(25))], 99, 0)
    assert sorted((w.begin, w.end) for w in windows) == [(0, 8), (8, 16), (16, 24)]
    noise = calibrate(target, windows, "float64", width, 0)
    assert noise.positions == 24 and noise.maximum < 1e-9 and noise.own < 1e-6


def test_a_window_ends_where_it_is_asked_for():
    text = Text([5], random_ids(30))
    for position, begin, end in ((20, 12, 20), (29, 21, 29), (3, 0, WINDOW), (0, 0, WINDOW)):
        window = window_at(text, position)
        assert (window.begin, window.end) == (begin, end)


def test_logits_that_are_no_numbers_are_refused():
    """NaN is neither above a bound nor below it."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(AnswerError, match="not finite"):
        turn_gaps(Target(model), [Text(make_prompts()[0], random_ids(5))])


def test_the_control_finds_what_is_not_the_best_and_says_where_rounding_ends():
    target = Target(make_model(dtype=torch.float64))
    turns = [
        generate(target, EmptyDrafter(), [prompt], Sampler(), [0], StopRules(), 30)[0]
        for prompt in make_prompts()
    ]
    asked = {
        number: [Text(prompt, turn.output_ids, f"question {number}")]
        for number, (prompt, turn) in enumerate(zip(make_prompts(), turns))
    }
    noise = calibrate(
        target, sample_windows([t for (t,) in asked.values()], 64, 0), "float64", 9, 0
    )
    found = control.run_control(target, asked, {1, 2}, noise, 0)
    assert (found["control_differ"], found["method_differ"], found["odd"]) == (0, 2, None)
    asked[2][0].ids[13] += 1
    found = control.run_control(target, asked, {1, 2}, noise, 0)
    assert found["control_differing"] == [2]
    assert (found["odd"]["where"], found["odd"]["position"]) == ("question 2", 13)
    ties = [SimpleNamespace(verdict=TIES)] * 2
    verdict, (reason,) = file_verdict(ties, noise, found, None)
    assert verdict == CANNOT and "question 2 token 13" in reason


def test_tokens_of_a_rerun_are_held_to_transformers_own_forward():
    target = Target(make_model())
    prompt = make_prompts()[1]
    (turn,) = generate(target, EmptyDrafter(), [prompt], Sampler(), [0], StopRules(), 30)
    subject = SimpleNamespace(prompt=lambda *place: prompt, penalties=NO_PENALTIES)
    choice = SimpleNamespace(output_ids=[turn.output_ids])
    question = SimpleNamespace(question_id=7, choices=[choice])
    assert proof.held_to_own(target, subject, [question]) == (2, None)
    choice.output_ids[0][-1] += 1
    checked, off = proof.held_to_own(target, subject, [question])
    assert checked == 2 and off["position"] == 29 and off["gap"] > 0.01
    found = {"identical": True, "dtype": "float32", "off": off}
    assert file_verdict([], None, None, found)[0] == BUG


def test_a_file_that_differs_more_often_than_the_control_is_suspect():
    ties = [SimpleNamespace(verdict=TIES)] * 20
    found = {"questions": 24, "method_differ": 20, "control_differ": 2, "width": 5, "odd": None}
    for hits, verdict in ((20, SUSPECT), (4, TIES)):
        low, _ = control.newcombe(hits, 24, 2, 24)
        assert file_verdict(ties, None, {**found, "significant": low > 0}, None)[0] == verdict


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


def least_gaps(planter, rest, forced):
    """least_gap of a text at the place where the target's best token is `forced`."""
    tokenizer = planter.prompter.tokenizer
    subject = SimpleNamespace(tokenizer=tokenizer, penalties=NO_PENALTIES)
    bias = torch.zeros(planter.target.vocab_size)
    bias[tokenizer.convert_tokens_to_ids(forced)] = 50.0
    head = planter.target.model.lm_head
    hook = head.register_forward_hook(lambda module, inputs, out: out + bias)
    try:
        prompt = tokenizer("hello").input_ids
        return least_gap(planter.target, subject, prompt, tokenizer(rest).input_ids, 0, {1})
    finally:
        hook.remove()


@pytest.mark.slow
@pytest.mark.slow
def test_tokenising_anew_is_told_from_a_bug(tmp_path, question_file):
    """A token that the text allows at the place excuses it, one that it does not allow does not."""
    model = save_model(tmp_path / "model", words=("ab", "abc"), scale=0.08)
    answer("vanilla", model, question_file, tmp_path / "vanilla.jsonl", "--model-id", "base")
    planter = Planter(model, question_file, tmp_path / "vanilla.jsonl", "float32")
    tokenizer = planter.prompter.tokenizer
    texts = token_texts(tokenizer, planter.target.vocab_size)
    ids = tokenizer.convert_tokens_to_ids(["ab", "abc", "a"])
    assert [texts[i] for i in ids] == ["ab", "abc", "a"] and texts[tokenizer.eos_token_id] is None
    begins = [("ab", "abc!", 0), ("ac", "abc!", 0), (" ab", "abc!", 1), (" ab", "abc!", 0)]
    assert [could_begin(*each) for each in begins] == [True, False, True, False]
    assert could_begin("!\n", "!", False)
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
    assert flags == ["--prompt-ngrams", "--num-gpus-per-model=1", "--batch-size=2"]
    assert vars(parser.parse_args(["--model-path", "t", *flags])) == recorded
