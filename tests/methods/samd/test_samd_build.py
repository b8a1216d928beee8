"""SAM-Decoding's static automaton: against counting, built from a corpus, and what is refused."""

import json
import random

import numpy as np
import pytest
from conftest import make_tokenizer
from samd_checks import (
    CORPUS,
    automaton,
    ends,
    longest_known_suffix,
    random_texts,
    slow_tree,
    static,
)

from model.common.errors import BadInput
from model.common.prompts.prompter import Prompter
from model.common.records.writer import sha256_file
from model.samd import build_sam
from model.samd.drafter import SamSequence, Settings
from model.samd.static import ARRAYS, HEAVY, StaticAutomaton, tokenizer_hash

CHAT = [
    {"from": "human", "value": "ab?"},
    {"from": "gpt", "value": "cd."},
    {"from": "human", "value": "ef?"},
    {"from": "gpt", "value": "gh."},
]
LINES = [{"conversations": CHAT}, {"text": "abcabcabd"}, {"id": 3, "conversations": CHAT[:2]}]


def test_corpus_vector():
    corpus = static(CORPUS, drafts_end_at=-1)
    assert len(corpus.text) == 19 and len(corpus.length) == 24
    state, size = corpus.move((0, 0), [11, 12])
    assert (size, corpus.count[state], corpus.first[state]) == (2, 4, 2)
    assert corpus.copy(state, 5) == [13, 14, 2, 11, 12]
    tokens, parents, depths = corpus.tree(state, 8)
    line = [13, 14, 2, 11, 12]
    assert tokens[:5] == line and parents[:5] == [-1, 0, 1, 2, 3] and depths[:5] == [1, 2, 3, 4, 5]
    counts = [corpus.count[corpus.move((state, 2), path(tokens, parents, i))[0]] for i in range(8)]
    assert counts == [3, 2, 2, 2, 2, 1, 1, 1]  # of 4: weights .75, .5 x4, .25 x3


def test_drafts_end_with_the_document():
    corpus = static(CORPUS)
    state, _ = corpus.move((0, 0), [11, 12])
    assert corpus.copy(state, 5) == [13, 14, 2]
    tokens, parents, _ = corpus.tree(state, 20)
    assert sorted(path(tokens, parents, i) for i in range(len(tokens))) == [
        [13],
        [13, 14],
        [13, 14, 2],
        [13, 15],
        [13, 15, 2],
        [16],
        [16, 2],
    ]


def path(tokens, parents, node):
    """Tokens from the root to a node."""
    line = []
    while node >= 0:
        line.insert(0, tokens[node])
        node = parents[node]
    return line


def test_cursor_equals_a_search():
    dice = random.Random(6)
    for text in random_texts(40, seed=7, longest=30):
        corpus = static([text], separator=9)
        read, cursor = [], (0, 0)
        for _ in range(25):
            new = [dice.randrange(6) for _ in range(dice.randint(1, 3))]
            if dice.random() < 0.5:
                begin = dice.randrange(len(text))
                new = text[begin : begin + 5]
            cursor = corpus.move(cursor, new)
            read += new
            suffix = longest_known_suffix(read, [*text, 9])
            assert cursor[1] == len(suffix)
            if suffix:
                found = ends([*text, 9], suffix)
                assert corpus.first[cursor[0]] == found[0]
                assert corpus.count[cursor[0]] == len(found)
            else:
                assert cursor == (0, 0)


def test_arrays_equal_the_automaton():
    """More successors than are heavy, so that both halves of a state's edges are read."""
    dice = random.Random(8)
    text = [dice.choice([0, 0, 0, 1, 1, *range(2, 40)]) for _ in range(1500)]
    grown, corpus = automaton([*text, 50]), static([text], separator=50)
    assert len(grown.next[0]) > 2 * HEAVY
    for state, edges in enumerate(grown.next):
        assert {token: corpus.step(state, token) for token in edges} == edges
        begin, end = corpus.offsets[state], corpus.offsets[state + 1]
        assert end - begin == len(edges)
        counts = [corpus.count[target] for target in corpus.edge_state[begin:end].tolist()]
        heavy = counts[:HEAVY]
        assert heavy == sorted(counts, reverse=True)[:HEAVY]
        assert corpus.step(state, 41) == -1


@pytest.mark.parametrize("letters", [2, 4, 15])
def test_tree_equals_counting(letters):
    dice = random.Random(letters)
    for num in (1, 7, 39):
        documents = [
            [dice.randrange(letters) for _ in range(dice.randint(1, 12))] for _ in range(20)
        ]
        text = [token for document in documents for token in [*document, 99]]
        corpus = static(documents, separator=99)
        for match in ([documents[0][0]], documents[1][:2], documents[2][:3]):
            state, size = corpus.move((0, 0), match)
            assert size == len(match)
            assert corpus.tree(state, num) == slow_tree(text, match, num, 99)
    assert corpus.tree(0, 5) == ([], [], [])
    assert corpus.copy(0, 5) == []


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def build(tokenizer_dir, corpus, output):
    build_sam.main(["--model-path", tokenizer_dir, "--input", corpus, "--output", str(output)])
    return output


@pytest.fixture
def built(tokenizer_dir, tmp_path, capsys):
    corpus = write(tmp_path / "corpus.jsonl", LINES)
    folder = build(tokenizer_dir, corpus, tmp_path / "sam")
    assert "tokens" in capsys.readouterr().out
    return folder


def refused(capsys, *words, run):
    """Exit status 2 and one line with these words."""
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("build_sam: ") and error.count("\n") == 1
    assert all(word in error for word in words), error


def test_documents_are_prompts_with_their_answers(built, tokenizer):
    prompter = Prompter(tokenizer)
    text = np.load(built / "text.npy").tolist()
    documents = [
        prompter.render(["ab?", "ef?"], ["cd."]) + tokenizer("gh.").input_ids,
        tokenizer("abcabcabd").input_ids,
        prompter.render(["ab?"], []) + tokenizer("cd.").input_ids,
    ]
    assert text == [token for ids in documents for token in [*ids, tokenizer.eos_token_id]]


def test_what_is_built_is_read(built, tokenizer, tmp_path):
    corpus = StaticAutomaton.open(str(built), tokenizer)
    manifest = json.loads((built / "manifest.json").read_text())
    facts = corpus.facts()
    assert facts["automaton_states"] == manifest["sizes"]["length"]
    assert facts["automaton_tokens"] == len(corpus.text)
    assert facts["automaton_build_s"] == manifest["build_s"] >= 0
    assert facts["automaton_corpus"] == "corpus.jsonl"
    assert facts["automaton_corpus_sha256"] == sha256_file(tmp_path / "corpus.jsonl")
    assert facts["automaton_tokenizer_sha256"] == tokenizer_hash(tokenizer)
    assert facts["automaton_bytes"] == sum(np.load(built / f"{n}.npy").nbytes for n in ARRAYS)
    sequence = SamSequence(Settings(), corpus)
    sequence.start(tokenizer("xyzef?\n").input_ids)
    assert tokenizer.decode(sequence.propose().tokens).startswith("assistant: gh.")


def test_building_again_gives_the_same_arrays(built, tokenizer_dir, tmp_path):
    again = build(tokenizer_dir, str(tmp_path / "corpus.jsonl"), tmp_path / "again")
    for name in ARRAYS:
        assert (again / f"{name}.npy").read_bytes() == (built / f"{name}.npy").read_bytes()


def test_another_tokenizer_is_refused(built):
    with pytest.raises(BadInput, match="--static-path .*built with another tokenizer"):
        StaticAutomaton.open(str(built), make_tokenizer(["new"]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 99}, "format version 99, this code reads 1"),
        ({"sizes": None}, "manifest.json: no sizes"),
        ({"separator": KeyError}, "manifest.json: no separator"),
        ({"version": KeyError}, "no automaton of model.samd.build_sam"),
        (None, "no automaton of model.samd.build_sam"),
    ],
)
def test_a_foreign_manifest_is_refused(built, tokenizer, change, message):
    path = built / "manifest.json"
    manifest = {**json.loads(path.read_text()), **(change or {})}
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not KeyError}))
    if change is None:
        path.unlink()
    with pytest.raises(BadInput, match=message):
        StaticAutomaton.open(str(built), tokenizer)


@pytest.mark.parametrize("name", ARRAYS)
def test_truncated_arrays_are_refused(built, tokenizer, name):
    path = built / f"{name}.npy"
    content = path.read_bytes()
    for damaged in (content[:-4], content[:40], b""):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=f"{name}.npy: missing or damaged"):
            StaticAutomaton.open(str(built), tokenizer)
    np.save(path, np.zeros(1, np.int32))
    with pytest.raises(BadInput, match=f"{name}.npy: .* the manifest says int32"):
        StaticAutomaton.open(str(built), tokenizer)
    path.unlink()
    with pytest.raises(BadInput, match=f"{name}.npy: missing"):
        StaticAutomaton.open(str(built), tokenizer)


@pytest.mark.parametrize(
    "lines, words",
    [
        ([], ["--input", "no document"]),
        ([{"texts": "x"}], ["corpus.jsonl:1", "neither text nor conversations"]),
        ([LINES[1], {"text": 7}], ["corpus.jsonl:2"]),
        ([[1]], ["corpus.jsonl:1"]),
        ([{"conversations": CHAT[:1]}], ["corpus.jsonl:1", "1 human and 0 gpt messages"]),
    ],
)
def test_bad_corpora_are_refused(lines, words, tokenizer_dir, tmp_path, capsys):
    corpus = write(tmp_path / "corpus.jsonl", lines)
    output = tmp_path / "sam"
    refused(capsys, *words, run=lambda: build(tokenizer_dir, corpus, output))
    assert not (output / "manifest.json").exists()


def test_missing_paths_are_refused(tokenizer_dir, tmp_path, capsys):
    missing, output = str(tmp_path / "none"), tmp_path / "sam"
    refused(capsys, "--input", run=lambda: build(tokenizer_dir, missing, output))
    refused(capsys, "no tokenizer", run=lambda: build(missing, missing, output))
