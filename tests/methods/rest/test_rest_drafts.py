"""REST: drafts of a datastore, answers equal to the baseline's, datastores that are refused."""

import json
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts, make_tokenizer
from counting import counting_target
from harness_runs import run
from oracle import decode, facts, outputs
from rest_stores import GOLDEN, make_store
from steps import prompt_step

from model.common.contract.drafter import Draft
from model.common.contract.sequence import EmptyDrafter, PerSequence
from model.common.contract.trees import Tree
from model.common.errors import BadInput
from model.common.loop import verify
from model.common.loop.sampling import Sampler
from model.common.target.model import Target
from model.rest.drafter import RESTDrafter, facts_of, make_drafter
from model.rest.retriever import Retriever


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def rest(retriever):
    sizes = retriever.num_nodes, retriever.depth
    return PerSequence(lambda: RESTDrafter(retriever), *sizes, partial(facts_of, retriever))


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.8, top_p=0.95)], ids=["greedy", "drawn"])
def test_own_outputs_help(tmp_path, target, sampler):
    """Alone and in two slots that are filled again; ids are vanilla's."""
    prompts = make_prompts(4)
    base = outputs(decode(target, EmptyDrafter(), prompts, 40, sampler))
    noise = [[i % 97 for i in range(k, k + 30)] for k in range(20)]
    retriever = Retriever(make_store(tmp_path, base + noise))
    alone = decode(target, rest(retriever), prompts, 40, sampler, num_slots=1)
    together = decode(target, rest(retriever), prompts, 40, sampler, num_slots=2)
    assert outputs(alone) == base and facts(alone) == facts(together)
    steps = [length for turn in alone for length in turn.accept_lengths]
    assert sum(steps) / len(steps) > 3 or not sampler.greedy
    assert all(max(turn.accept_lengths) > 1 for turn in alone)
    assert max(max(turn.drafted) for turn in alone) > 10
    for turn in alone:
        assert all(1 <= n <= 1 + depth for n, depth in zip(turn.accept_lengths, turn.depth))
    known = rest(retriever).facts()
    assert known["datastore_tokens"] == 4 * 40 + 20 * 30
    assert known["datastore_bytes"] == 6 * (4 * 41 + 20 * 31)
    assert known["num_lookups"] >= 40 and 0 < known["lookup_s"] < 1 and known["build_s"] > 0


def test_a_store_without_hits_is_the_baseline(tmp_path, target):
    prompts = make_prompts(4)
    retriever = Retriever(make_store(tmp_path, [[98, 99, 98]]))
    base, turns = (decode(target, d, prompts, 12) for d in (EmptyDrafter(), rest(retriever)))
    assert outputs(turns) == outputs(base)
    assert all(set(turn.accept_lengths) == {1} for turn in turns)
    assert all(set(turn.drafted) == {0} for turn in turns)


def test_token_zero_is_a_token(tmp_path):
    text = [*range(55, 61), *range(10)]
    retriever = Retriever(make_store(tmp_path, [text, [*text[:8], 9], [56, 57, 1]]))
    (turn,) = decode(counting_target(), rest(retriever), [[3, 55, 56]], 12)
    assert turn.output_ids == [57, 58, 59, 60, *range(8)]
    assert max(turn.accept_lengths) == 11 and turn.accept_lengths[0] == 11


def test_sampling_a_shared_node_keeps_the_distribution():
    num = 40_000
    probs = torch.tensor([0.1, 0.5, 0.25, 0.15], dtype=torch.float64)
    logits = probs.log().expand(num, 4, 4)
    uniforms = torch.rand(num, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    draft = Draft(torch.tensor([[1, 2, 3]]).expand(num, 3), Tree(torch.tensor([-1, 0, 0]), 2))
    accepted = verify.token_matching(logits, draft, Sampler(1.0).warp, uniforms)
    first = accepted.tokens[:, 0].bincount(minlength=4) / num
    assert (first - probs).abs().max() < 0.012  # 4.8 standard deviations
    assert ((accepted.count > 1) == (accepted.tokens[:, 0] == 1)).all()


def settings(folder, **changes):
    values = {"max_token_span": 16, "min_token_span": 2, "max_depth": 10, "num_draft": 64}
    return SimpleNamespace(**{"datastore_path": str(folder), **values, **changes})


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def test_drafter_of_a_command(tmp_path, tokenizer_dir):
    make_store(tmp_path, GOLDEN, tokenizer=make_tokenizer())
    drafter = make_drafter(settings(tmp_path, model_path=tokenizer_dir))
    assert (drafter.max_nodes, drafter.max_depth, drafter.reads_per_step) == (64, 10, 0)
    drafter.reserve(2, 64, Sampler())
    drafter.start(prompt_step([[9, 2, 3], [8, 8]]))
    draft = drafter.propose()
    assert draft.tokens.tolist() == [[4, 5, 6], [-1, -1, -1]] and draft.depth == 2
    assert draft.tree.parents.tolist() == [[-1, -1, 1], [-1, -1, -1]]
    drafter.end([0])
    assert drafter.propose().tokens.tolist() == [[], []]


def test_foreign_and_broken_datastores_are_refused(tmp_path, tokenizer_dir):
    def refused(folder, **changes):
        with pytest.raises(BadInput) as caught:
            make_drafter(settings(folder, model_path=tokenizer_dir, **changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "tokenizer" in refused(make_store(tmp_path / "foreign", GOLDEN).path)
    store = make_store(tmp_path / "own", GOLDEN, tokenizer=make_tokenizer())
    assert "--max-token-span 3" in refused(store.path, max_token_span=3, min_token_span=4)
    assert "manifest.json" in refused(tmp_path / "none")
    for name, size in (("suffixes.bin", 15 * 4), ("tokens.bin", 15 * 2)):
        os.truncate(store.path / name, size - 1)
        message = refused(store.path)
        assert name in message and f"{size - 1} bytes" in message and str(size) in message
        os.truncate(store.path / name, size)
    (store.path / "tokens.bin").rename(tmp_path / "elsewhere")
    assert "tokens.bin: 0 bytes" in refused(store.path)
    path = store.path / "manifest.json"
    for change, words in (
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "not a datastore"),
        ({"chunks": None}, "incomplete"),
        ({"chunks": [{}]}, "incomplete"),
    ):
        path.write_text(json.dumps(store.manifest | change))
        assert words in refused(store.path)
    for text in ("", "[]", "{", "{}"):
        path.write_text(text)
        assert "manifest.json" in refused(store.path)


def test_script_answers_in_one_line(tmp_path, model_dir, question_file, capsys):
    where = ["--model-path", model_dir, "--question-file", question_file, "--dtype", "float32"]
    where += ["--answer-file", tmp_path / "out.jsonl", "--warmup", 0, "--max-new-tokens", 8]
    assert run("rest", *where, "--datastore-path", tmp_path / "none") == 2
    assert capsys.readouterr().err.count("\n") == 1
    make_store(tmp_path / "store", GOLDEN, tokenizer=make_tokenizer())
    assert run("rest", *where, "--datastore-path", tmp_path / "store", "--overwrite") == 0
