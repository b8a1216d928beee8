"""REST: drafts of a datastore, and datastores that are refused (ids: conformance/)."""

import json
import os
from types import SimpleNamespace

import pytest
from conftest import make_tokenizer
from counting import counting_target
from oracle import decode
from rest_stores import GOLDEN, SOURCE, make_store
from steps import prompt_step

from model.common.errors import BadInput
from model.common.loop.sampling import Sampler
from model.rest.drafter import RESTDrafter, make_drafter
from model.rest.retriever import Retriever


def test_token_zero_is_a_token(tmp_path):
    """Whole answers out of the corpus, and what the answer file says of the datastore."""
    text = [*range(55, 61), *range(10)]
    retriever = Retriever(make_store(tmp_path, [text, [*text[:8], 9], [56, 57, 1]]))
    drafter = RESTDrafter(retriever)
    (turn,) = decode(counting_target(), drafter, [[3, 55, 56]], 12)
    assert turn.output_ids == [57, 58, 59, 60, *range(8)]
    assert max(turn.accept_lengths) == 11 and turn.accept_lengths[0] == 11
    known = drafter.facts()
    assert known["datastore_tokens"] == 16 + 9 + 3
    assert known["datastore_bytes"] == 6 * (17 + 10 + 4)
    assert known["num_lookups"] >= 1 and 0 < known["lookup_s"] < 1 and known["build_s"] > 0
    assert known["datastore_corpus"] == SOURCE["name"]
    assert known["datastore_corpus_sha256"] == SOURCE["sha256"]
    digest = retriever.store.manifest["tokenizer_sha256"]
    assert known["datastore_tokenizer_sha256"] == digest and len(digest) == 64
    drafter.forget()  # what a warm-up asked
    assert drafter.facts() == known | {"num_lookups": 0, "lookup_s": 0.0}


def settings(folder, **changes):
    values = {"max_token_span": 16, "min_token_span": 2, "max_depth": 10, "num_draft": 64}
    return SimpleNamespace(**{"datastore_path": str(folder), **values, **changes})


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
        ({"source": None}, "incomplete"),
        ({"chunks": [{}]}, "incomplete"),
    ):
        path.write_text(json.dumps(store.manifest | change))
        assert words in refused(store.path)
    for text in ("", "[]", "{", "{}"):
        path.write_text(text)
        assert "manifest.json" in refused(store.path)
