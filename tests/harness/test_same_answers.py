"""The same answers however a run is made: paired, batched, shuffled, by hf, compiled."""

import json
import random
import shutil

import pytest
from harness_runs import (
    METHODS,
    all_methods,
    answer,
    ids_of,
    own_flags,
    questions_of,
    read,
    read_meta,
    timeless,
    without,
    write,
)
from transformers import GenerationMixin

from model.common.contract.drafter import Draft
from model.common.contract.sequence import EmptyDrafter
from model.common.loop.turns import StopRules
from model.common.prompts.prompter import Prompter


@pytest.fixture(scope="module")
def files(tmp_path_factory, model_dir, draft_dir, question_file):
    return all_methods(tmp_path_factory.mktemp("answers"), model_dir, draft_dir, question_file)


@pytest.fixture
def ask(model_dir, question_file, tmp_path):
    """ask(method, name, flags): the records of a run into name.jsonl."""

    def asked(method, name, *flags, model=model_dir, questions=question_file, **more):
        return answer(method, model, questions, tmp_path / f"{name}.jsonl", *flags, **more)

    return asked


@pytest.mark.parametrize("flags", [[], ["--temperature", 1], ["--batch-size", 4]])
def test_paired_baseline_stands_beside(ask, tmp_path, flags):
    out, beside = tmp_path / "a.jsonl", tmp_path / "a-paired-baseline.jsonl"
    own = ask("pld", "a", "--paired", 1, "--model-id", "tiny", *flags)
    base = read(beside)
    assert ids_of(own) == ids_of(base)
    assert [r["question_id"] for r in base] == [r["question_id"] for r in own]
    assert {r["model_id"] for r in base} == {"tiny-paired-baseline"}
    assert all(set(r["choices"][0]["accept_lengths"]) == {1} for r in base)
    meta = read_meta(beside)
    assert meta["method"] == "vanilla"
    assert meta["method_args"] == {}
    assert meta["shared"] == read_meta(out)["shared"]
    assert ids_of(ask("pld", "b", *flags)) == ids_of(own)


def test_paired_order_alternates(ask, monkeypatch):
    calls = []

    class Own(EmptyDrafter):
        pass

    def start(self, prompt):
        calls.append("method" if isinstance(self, Own) else "baseline")
        self.draft = Draft(prompt.tokens.new_empty(1, 0))

    monkeypatch.setattr(EmptyDrafter, "start", start)
    ask("pld", "a", "--paired", 1, "--question-begin", 1, build=lambda args, target: Own())
    assert calls == ["method", "baseline", "baseline", "method"] * 2 + ["method", "baseline"]


@pytest.mark.parametrize("method", METHODS)
def test_batches_give_the_same_ids(files, ask, draft_dir, method):
    together = ask(method, "a", "--batch-size", 4, *own_flags(method, draft_dir))
    alone = read(files[method])
    fields = ("slot", "model_id", "answer_id")
    assert without(timeless(together), *fields) == without(timeless(alone), *fields)
    slots = [record["choices"][0]["slot"] for record in together]
    assert [sorted(set(own)) for own in slots[:4]] == [[0], [1], [2], [3]]
    assert len(slots[0]) == 2 and {slot for own in slots for slot in own} == {0, 1, 2, 3}
    assert {slot for record in alone for slot in record["choices"][0]["slot"]} == {0}


@pytest.mark.parametrize("method", METHODS)
def test_sampled_ids_depend_on_the_seed_alone(ask, draft_dir, question_file, tmp_path, method):
    questions = questions_of(question_file)
    random.Random(1).shuffle(questions)
    shuffled = write(tmp_path / "questions.jsonl", questions)
    flags = ["--temperature", 1, "--top-p", 0.95, "--max-new-tokens", 12]
    flags += own_flags(method, draft_dir)

    def sampled(name, *more, **files):
        return ids_of(ask(method, name, *flags, *more, **files))

    alone = sampled("alone")
    assert sampled("batched", "--batch-size", 4) == alone
    assert sampled("shuffled", questions=shuffled) == alone
    assert sampled("shuffled-batched", "--batch-size", 4, questions=shuffled) == alone
    part = sampled("part", "--question-ids", "13,15")
    assert part == {i: alone[i] for i in (13, 15)}
    assert sampled("seed", "--seed", 1) != alone


@pytest.mark.parametrize("method", ["vanilla", "pld"])
def test_point_guesses_keep_the_baselines_sampled_ids(ask, tmp_path, method):
    flags = ["--temperature", 1.2, "--top-k", 30]
    assert ids_of(ask(method, "a", *flags)) == ids_of(ask("vanilla", "base", *flags))
    assert read_meta(tmp_path / "a.jsonl")["acceptance"] == "exact sampling"


def test_engine_hf_gives_the_loops_ids(files, ask):
    theirs = ask("vanilla", "a", "--engine", "hf", "--model-id", "tiny-vanilla")
    ours = read(files["vanilla"])
    missing = ("draft_s", "verify_s", "commit_s")
    assert without(timeless(theirs), *missing) == without(timeless(ours), *missing)
    for record in theirs:
        (choice,) = record["choices"]
        assert choice["first_s"] == choice["prefill_s"]
        for prefill_s, wall_s in zip(choice["prefill_s"], choice["wall_time"]):
            assert 0 < prefill_s < wall_s


def edited_model(model_dir, folder, name, **changes):
    """A copy of a model directory with fields of one JSON file changed."""
    shutil.copytree(model_dir, folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))
    return folder


def test_engine_hf_ignores_penalties_of_the_model(ask, model_dir, tmp_path):
    """What generation_config.json adds to greedy decoding must bind both engines or neither."""
    model = edited_model(
        model_dir, tmp_path / "m", "generation_config.json", repetition_penalty=1.5
    )
    ours, theirs = (ask("vanilla", e, "--engine", e, model=model) for e in ("loop", "hf"))
    assert ids_of(ours) == ids_of(theirs)


def test_engine_hf_stops_at_stop_strings(files, ask, monkeypatch):
    """Tokens after a stop string are neither counted nor timed."""
    text = read(files["vanilla"])[5]["choices"][0]["turns"][0]
    sign = next(c for c in text[3:] if c.isascii() and c.isprintable() and c not in " \ufffd")
    rules = Prompter.stop_rules

    def with_string(self, config):
        found = rules(self, config)
        return StopRules(found.eos_ids, (sign,), found.decode)

    monkeypatch.setattr(Prompter, "stop_rules", with_string)
    lengths = []
    generate = GenerationMixin.generate

    def logged(self, inputs, **options):
        output = generate(self, inputs, **options)
        lengths.append(output.shape[1] - inputs.shape[1])
        return output

    monkeypatch.setattr(GenerationMixin, "generate", logged)
    ours = ask("vanilla", "a", "--question-ids", 16)
    theirs = ask("vanilla", "b", "--question-ids", 16, "--engine", "hf")
    assert ids_of(ours) == ids_of(theirs)
    assert ours[0]["choices"][0]["finish_reason"] == ["stop"]
    assert lengths == theirs[0]["choices"][0]["new_tokens"]


@pytest.mark.compiled
def test_compiled_runtime_gives_the_same_ids(ask, draft_dir):
    """On the one-layer model: the compiler takes seconds per layer."""
    flags = ["--num-draft", 3, "--question-ids", "12,13"]
    eager = ask("pld", "a", *flags, model=draft_dir)
    compiled = ask("pld", "b", *flags, "--runtime", "compile", model=draft_dir)
    assert ids_of(compiled) == ids_of(eager)
    lengths = [r["choices"][0]["accept_lengths"] for r in compiled]
    assert lengths == [r["choices"][0]["accept_lengths"] for r in eager]
