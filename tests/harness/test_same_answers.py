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


@pytest.mark.parametrize("flags", [[], ["--temperature", 1], ["--batch-size", 4]])
def test_paired_baseline_stands_beside(files, model_dir, question_file, tmp_path, flags):
    out = tmp_path / "a.jsonl"
    own = answer("pld", model_dir, question_file, out, "--paired", "--model-id", "tiny", *flags)
    beside = tmp_path / "a-paired-baseline.jsonl"
    base = read(beside)
    assert ids_of(own) == ids_of(base)
    assert [r["question_id"] for r in base] == [r["question_id"] for r in own]
    assert {r["model_id"] for r in base} == {"tiny-paired-baseline"}
    assert all(set(r["choices"][0]["accept_lengths"]) == {1} for r in base)
    meta = read_meta(beside)
    assert meta["method"] == "vanilla"
    assert meta["method_args"] == {}
    assert meta["shared"] == read_meta(out)["shared"]
    plain = answer("pld", model_dir, question_file, tmp_path / "b.jsonl", *flags)
    assert ids_of(plain) == ids_of(own)


def test_paired_order_alternates(model_dir, question_file, tmp_path, monkeypatch):
    calls = []

    class Own(EmptyDrafter):
        pass

    def start(self, prompt):
        calls.append("method" if isinstance(self, Own) else "baseline")
        self.draft = Draft(prompt.tokens.new_empty(1, 0))

    monkeypatch.setattr(EmptyDrafter, "start", start)
    flags = ["--paired", "--question-begin", 1]
    build = lambda args, target: Own()  # noqa: E731
    answer("pld", model_dir, question_file, tmp_path / "a.jsonl", *flags, build=build)
    assert calls == ["method", "baseline", "baseline", "method"] * 2 + ["method", "baseline"]


@pytest.mark.parametrize("method", METHODS)
def test_batches_give_the_same_ids(files, model_dir, draft_dir, question_file, tmp_path, method):
    flags = ["--batch-size", 4, *own_flags(method, draft_dir)]
    together = answer(method, model_dir, question_file, tmp_path / "a.jsonl", *flags)
    alone = read(files[method])
    fields = ("slot", "depth", "model_id", "answer_id")
    assert without(timeless(together), *fields) == without(timeless(alone), *fields)
    slots = [record["choices"][0]["slot"] for record in together]
    assert [sorted(set(own)) for own in slots[:4]] == [[0], [1], [2], [3]]
    assert len(slots[0]) == 2 and {slot for own in slots for slot in own} == {0, 1, 2, 3}
    assert {slot for record in alone for slot in record["choices"][0]["slot"]} == {0}


@pytest.mark.parametrize("method", METHODS)
def test_sampled_ids_depend_on_the_seed_alone(
    model_dir, draft_dir, question_file, tmp_path, method
):
    questions = questions_of(question_file)
    random.Random(1).shuffle(questions)
    shuffled = write(tmp_path / "shuffled.jsonl", questions)
    flags = ["--temperature", 1, "--top-p", 0.95, "--max-new-tokens", 12]
    flags += own_flags(method, draft_dir)

    def sampled(name, file, *more):
        return ids_of(answer(method, model_dir, file, tmp_path / f"a-{name}.jsonl", *flags, *more))

    alone = sampled("alone", question_file)
    assert sampled("batched", question_file, "--batch-size", 4) == alone
    assert sampled("shuffled", shuffled) == alone
    assert sampled("shuffled-batched", shuffled, "--batch-size", 4) == alone
    part = sampled("part", question_file, "--question-ids", "13,15")
    assert part == {i: alone[i] for i in (13, 15)}
    assert sampled("seed", question_file, "--seed", 1) != alone


@pytest.mark.parametrize("method", ["vanilla", "pld"])
def test_point_guesses_keep_the_baselines_sampled_ids(model_dir, question_file, tmp_path, method):
    flags = ["--temperature", 1.2, "--top-k", 30]
    out = tmp_path / "a.jsonl"
    base = answer("vanilla", model_dir, question_file, tmp_path / "base.jsonl", *flags)
    assert ids_of(answer(method, model_dir, question_file, out, *flags)) == ids_of(base)
    assert read_meta(out)["acceptance"] == "exact sampling"


def test_engine_hf_gives_the_loops_ids(files, model_dir, question_file, tmp_path):
    flags = ["--engine", "hf", "--model-id", "tiny-vanilla"]
    theirs = answer("vanilla", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    ours = read(files["vanilla"])
    missing = ("draft_s", "verify_s", "commit_s")
    assert without(timeless(theirs), *missing) == without(timeless(ours), *missing)
    for record in theirs:
        (choice,) = record["choices"]
        for prefill_s, wall_s in zip(choice["prefill_s"], choice["wall_time"]):
            assert 0 < prefill_s < wall_s


def edited_model(model_dir, folder, name, **changes):
    """A copy of a model directory with fields of one JSON file changed."""
    shutil.copytree(model_dir, folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))
    return folder


def test_engine_hf_ignores_penalties_of_the_model(model_dir, question_file, tmp_path):
    """What generation_config.json adds to greedy decoding must bind both engines or neither."""
    model = edited_model(
        model_dir, tmp_path / "m", "generation_config.json", repetition_penalty=1.5
    )
    ours = answer("vanilla", model, question_file, tmp_path / "a.jsonl")
    theirs = answer("vanilla", model, question_file, tmp_path / "b.jsonl", "--engine", "hf")
    assert ids_of(ours) == ids_of(theirs)


def test_engine_hf_stops_at_stop_strings(files, model_dir, question_file, tmp_path, monkeypatch):
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
    flags = ["--question-ids", 16]
    ours = answer("vanilla", model_dir, question_file, tmp_path / "a.jsonl", *flags)
    flags += ["--engine", "hf"]
    theirs = answer("vanilla", model_dir, question_file, tmp_path / "b.jsonl", *flags)
    assert ids_of(ours) == ids_of(theirs)
    assert ours[0]["choices"][0]["finish_reason"] == ["stop"]
    assert lengths == theirs[0]["choices"][0]["new_tokens"]


@pytest.mark.compiled
def test_compiled_runtime_gives_the_same_ids(draft_dir, question_file, tmp_path):
    """On the one-layer model: the compiler takes seconds per layer."""
    flags = ["--num-draft", 3, "--question-ids", "12,13"]
    eager = answer("pld", draft_dir, question_file, tmp_path / "a.jsonl", *flags)
    flags += ["--runtime", "compile"]
    compiled = answer("pld", draft_dir, question_file, tmp_path / "b.jsonl", *flags)
    assert ids_of(compiled) == ids_of(eager)
    lengths = [r["choices"][0]["accept_lengths"] for r in compiled]
    assert lengths == [r["choices"][0]["accept_lengths"] for r in eager]
