"""REST: suffix ranges and trees against brute force, answers equal to the baseline's, bad input."""

import json
import mmap
import os
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_model, make_prompts, make_tokenizer
from harness_runs import run
from test_pld import cycle_target

from model.common.contract.drafter import Draft, EmptyDrafter
from model.common.contract.sequence import PerSequence
from model.common.errors import BadInput
from model.common.loop import verify
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.rest.datastore import open_datastore, sorted_suffixes, write_json
from model.rest.drafter import RESTDrafter, facts_of, make_drafter
from model.rest.retriever import Retriever
from model.rest.writer import Writer, settings_of

GOLDEN = [[1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 5, 6]]
SOURCE = {"name": "test", "num_files": 1, "bytes": 1, "sha256": ""}


class Ids:
    """Stands for a tokenizer of so many ids."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def get_vocab(self):
        return {"all": self.size}


def make_store(folder, documents, size=100, chunk_tokens=1 << 20, separators=True, tokenizer=None):
    """A datastore of documents given as ids."""
    settings = settings_of(tokenizer or Ids(size), "test", SOURCE, chunk_tokens, separators)
    writer = Writer(str(folder), settings)
    for ids in documents:
        writer.add(ids, True)
    writer.finish(0)
    return open_datastore(str(folder))


def random_documents(dice, num_tokens, letters, base=0):
    """Documents of 1 to 60 ids, a third of them copied from earlier ones."""
    documents, total = [], 0
    while total < num_tokens:
        ids = [base + dice.randrange(letters) for _ in range(dice.randint(1, 60))]
        if documents and dice.random() < 0.33:
            ids = dice.choice(documents)[: dice.randint(1, 60)] + ids[:5]
        documents.append(ids)
        total += len(ids)
    return documents


def text_of(ids):
    """Ids as characters, for Python's own search."""
    return "".join(map(chr, ids))


def brute_match(documents, query, shortest, longest):
    """(length, continuations) of the longest suffix, by searching all documents."""
    texts, query = [text_of(ids) for ids in documents], text_of(query)
    for size in range(min(longest, len(query)), shortest - 1, -1):
        found = []
        for text in texts:
            at = text.find(query[-size:])
            while at >= 0:
                found.append([ord(letter) for letter in text[at + size :]])
                at = text.find(query[-size:], at + 1)
        if found:
            return size, found
    return 0, []


def brute_tree(continuations, depth, num_nodes):
    """The heaviest prefixes by definition: [(tokens, weight)], best first."""
    counts = Counter(
        tuple(ids[:size]) for ids in continuations for size in range(1, min(depth, len(ids)) + 1)
    )
    ranked = sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))
    return ranked[:num_nodes]


def paths_of(tokens, parents, weights, depths):
    """Nodes as [(tokens from the root, weight)]."""
    paths = []
    for token, parent, depth in zip(tokens, parents, depths):
        assert parent < len(paths)
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
        assert len(paths[-1]) == depth
    return list(zip(paths, weights))


def test_golden_suffix_array_and_weights(tmp_path):
    store = make_store(tmp_path, GOLDEN, separators=False)
    assert store.suffixes.tolist() == [0, 4, 1, 5, 8, 2, 6, 9, 3, 7, 10, 11, 12]
    assert store.tokens.tolist() == [*sum(GOLDEN, []), 65535]
    retriever = Retriever(store)
    size, found = retriever.match([2, 3])
    ((first, low, high),) = found
    assert size == 2 and sorted(store.suffixes[low:high].tolist()) == [1, 5, 8]
    weights = dict(paths_of(*retriever.tree(size, found)))
    assert weights[(4,)] == 2
    assert weights[(5,)] == weights[(4, 1)] == weights[(4, 2)] == 1
    two, one = (Retriever(store, num_nodes=n).lookup([9, 2, 3]) for n in (2, 1))
    assert (two.tokens, two.parents, two.depth) == ([4, 5], [-1, -1], 1)
    assert (one.tokens, one.parents, one.depth) == ([4], [-1], 1)


def test_separators_end_matches_and_drafts(tmp_path):
    store = make_store(tmp_path, GOLDEN)
    retriever = Retriever(store)
    assert store.tokens.tolist() == [1, 2, 3, 4, 65535, 1, 2, 3, 4, 65535, 2, 3, 5, 6, 65535]
    tree = retriever.lookup([2, 3])
    assert (tree.tokens, tree.parents, tree.depth) == ([4, 5, 6], [-1, -1, 1], 2)
    assert retriever.lookup([4, 1]).tokens == []  # stands only across documents
    assert retriever.lookup([5, 6]).tokens == []  # the end of the data
    assert retriever.lookup([3, 4]).tokens == []
    assert retriever.lookup([65535, 2, 3]).tokens == [4, 5, 6]  # an id that is none


@pytest.mark.parametrize("letters, width", [(3, 2), (60000, 2), (150001, 4)])
def test_suffixes_equal_a_naive_sort(letters, width):
    dice = random.Random(letters)
    for trial in range(25):
        ids = [dice.randrange(letters) for _ in range(dice.randint(1, 40))]
        ids = (ids * 3)[: dice.randint(1, 110)] + [letters - 1] * (trial % 9) + [1 << 17]
        ids[-1] = (1 << 8 * width) - 1
        tokens = np.array(ids, f"<u{width}")
        order = np.concatenate(list(sorted_suffixes(tokens.copy(), width))).tolist()
        assert order == sorted(range(len(ids)), key=lambda i: ids[i:])


@pytest.mark.parametrize("chunk_tokens", [1 << 20, 4000])
@pytest.mark.parametrize("size, base", [(1000, 0), (200_000, 150_000)])
def test_longest_suffix_equals_brute_force(tmp_path, size, base, chunk_tokens):
    dice = random.Random(5)
    documents = random_documents(dice, 20_000, 25, base)
    store = make_store(tmp_path, documents, size, chunk_tokens)
    assert store.width == (2 if size < 65536 else 4)
    assert len(store.chunks) == (1 if chunk_tokens > 20_000 else 6)
    retriever = Retriever(store)
    lengths = Counter()
    for _ in range(50):
        document = dice.choice(documents)
        end = dice.randint(1, len(document))
        query = [base + dice.randrange(25) for _ in range(3)] + document[:end][
            -dice.randint(1, 20) :
        ]
        expected, hits = brute_match(documents, query, 2, 16)
        length, found = retriever.match(query)
        assert length == expected
        assert sum(high - low for _, low, high in found) == len(hits)
        lengths[length] += 1
    assert len(lengths) > 5


def test_bounds_of_the_matched_length(tmp_path):
    text = [*range(1, 40)]
    retriever = Retriever(make_store(tmp_path, [text]))
    assert retriever.match(text[:17])[0] == 16
    assert retriever.match([50, 7])[0] == 0  # one token is no match
    assert retriever.match([7])[0] == 0
    assert retriever.match([])[0] == 0
    assert retriever.match([6, 7])[0] == 2
    assert Retriever(retriever.store, shortest=1).match([50, 7])[0] == 1


@pytest.mark.parametrize("letters", [2, 6, 40])
@pytest.mark.parametrize("chunk_tokens", [1 << 20, 3000, 300])
def test_trees_equal_brute_force(tmp_path, letters, chunk_tokens):
    dice = random.Random(letters * chunk_tokens)
    documents = random_documents(dice, 6000, letters)
    store = make_store(tmp_path, documents, chunk_tokens=chunk_tokens)
    most = 0
    for num_nodes, depth in ((64, 10), (64, 3), (7, 10), (1, 1), (200, 10)):
        retriever = Retriever(store, 1, 16, depth, num_nodes)
        for length in (1, 1, 2, 3, 5, 9):
            document = dice.choice(documents)
            at = dice.randint(0, len(document))
            query = document[at : at + length] or [0]
            size, found = retriever.match(query)
            _, hits = brute_match(documents, query, 1, 16)
            tree = retriever.tree(size, found)
            paths = paths_of(*tree)
            assert paths == brute_tree(hits, depth, num_nodes)
            assert len(paths) <= num_nodes
            most = max(most, len(hits))
    assert most > (1000 if letters < 40 else 100)


def test_chunks_do_not_matter(tmp_path):
    dice = random.Random(1)
    documents = random_documents(dice, 5000, 12)
    one, two = (
        Retriever(make_store(tmp_path / str(n), documents, chunk_tokens=n)) for n in (10_000, 3500)
    )
    assert (len(one.store.chunks), len(two.store.chunks)) == (1, 2)
    for _ in range(100):
        query = dice.choice(documents)[-6:-1]
        assert one.lookup(query) == two.lookup(query)


def test_same_trees_in_every_process(tmp_path):
    documents = random_documents(random.Random(2), 2000, 5)
    make_store(tmp_path, documents)
    code = (
        "import sys; from model.rest.datastore import open_datastore as o; "
        "from model.rest.retriever import Retriever as R; r = R(o(sys.argv[1])); "
        "print([r.lookup([a, b]) for a in range(5) for b in range(5)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    retriever = Retriever(open_datastore(str(tmp_path)))
    trees = [retriever.lookup([a, b]) for a in range(5) for b in range(5)]
    assert done.stdout == f"{trees}\n"


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_the_files_are_mapped_and_not_read(tmp_path):
    small = make_store(tmp_path, [[1, 2, 3]])
    Retriever(small)
    places = 1 << 26
    for name, width in (("tokens.bin", 2), ("suffixes.bin", 4)):
        os.truncate(tmp_path / name, places * width)  # 384 MB of zeros
    chunks = [{"places": places}]
    write_json(tmp_path / "manifest.json", small.manifest | {"chunks": chunks})
    before = resident_bytes()
    store = open_datastore(str(tmp_path))
    retriever = Retriever(store)
    for token in range(2, 50):
        assert retriever.lookup([token, 3]).tokens == []
    for mapped, view in ((store.tokens, retriever.tokens), (store.suffixes, retriever.suffixes)):
        assert type(mapped) is np.memmap and isinstance(mapped.base, mmap.mmap)
        assert np.shares_memory(mapped, view) and not view.flags.writeable
    assert store.num_bytes == places * 6
    assert resident_bytes() - before < 30 << 20


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


def decode(target, drafter, prompts, limit=40, sampler=None, batch=None):
    turns = []
    for begin in range(0, len(prompts), batch or len(prompts)):
        part = prompts[begin : begin + (batch or len(prompts))]
        seeds = [1000 + len(prompt) for prompt in part]
        turns += generate(target, drafter, part, sampler or Sampler(), seeds, StopRules(), limit)
    return turns


def rest(retriever, pad_to=None):
    facts = partial(facts_of, retriever)
    return PerSequence(lambda: RESTDrafter(retriever), pad_to, facts, retriever.depth)


@pytest.mark.parametrize("pad_to", [None, 64])
def test_greedy_ids_equal_vanilla_and_own_outputs_help(tmp_path, target, pad_to):
    prompts = make_prompts(4)
    base = [turn.output_ids for turn in decode(target, EmptyDrafter(), prompts)]
    noise = [[i % 97 for i in range(k, k + 30)] for k in range(20)]
    retriever = Retriever(make_store(tmp_path, base + noise))
    for batch in (1, 4):
        turns = decode(target, rest(retriever, pad_to), prompts, batch=batch)
        assert [turn.output_ids for turn in turns] == base
        steps = [length for turn in turns for length in turn.accept_lengths]
        assert sum(steps) / len(steps) > 3
        assert max(max(turn.drafted) for turn in turns) > 10
        for turn in turns:
            assert all(1 <= n <= 1 + depth for n, depth in zip(turn.accept_lengths, turn.depth))
    facts = rest(retriever).facts()
    assert facts["datastore_tokens"] == 4 * 40 + 20 * 30
    assert facts["datastore_bytes"] == 6 * (4 * 41 + 20 * 31)
    assert facts["num_lookups"] >= 40 and 0 < facts["lookup_s"] < 1 and facts["build_s"] > 0


def test_a_store_without_hits_is_the_baseline(tmp_path, target):
    prompts = make_prompts(4)
    retriever = Retriever(make_store(tmp_path, [[98, 99, 98]]))
    base, turns = (decode(target, d, prompts, 12) for d in (EmptyDrafter(), rest(retriever)))
    assert [turn.output_ids for turn in turns] == [turn.output_ids for turn in base]
    assert all(set(turn.accept_lengths) == {1} for turn in turns)
    assert all(set(turn.drafted) == {0} for turn in turns)


def test_sampled_ids_equal_vanilla(tmp_path, target):
    prompts, sampler = make_prompts(4), Sampler(0.8, top_p=0.95)
    base = [t.output_ids for t in decode(target, EmptyDrafter(), prompts, sampler=sampler)]
    retriever = Retriever(make_store(tmp_path, base))
    for batch in (1, 4):
        turns = decode(target, rest(retriever), prompts, sampler=sampler, batch=batch)
        assert [turn.output_ids for turn in turns] == base
        assert sum(max(turn.accept_lengths) > 1 for turn in turns) == 4


def test_token_zero_is_a_token(tmp_path):
    text = [*range(55, 61), *range(10)]
    retriever = Retriever(make_store(tmp_path, [text, [*text[:8], 9], [56, 57, 1]]))
    target = cycle_target()
    (turn,) = decode(target, rest(retriever), [[3, 55, 56]], 12)
    assert turn.output_ids == [57, 58, 59, 60, *range(8)]
    assert max(turn.accept_lengths) == 11 and turn.accept_lengths[0] == 11


def test_sampling_a_shared_node_keeps_the_distribution():
    num = 40_000
    probs = torch.tensor([0.1, 0.5, 0.25, 0.15], dtype=torch.float64)
    logits = probs.log().expand(num, 4, 4)
    uniforms = torch.rand(num, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    draft = Draft(torch.tensor([[1, 2, 3]]).expand(num, 3), torch.tensor([-1, 0, 0]), 2)
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


@pytest.mark.parametrize("static, pad_to", [(False, None), (True, 64)])
def test_drafter_of_a_command(tmp_path, tokenizer_dir, static, pad_to):
    make_store(tmp_path, GOLDEN, tokenizer=make_tokenizer())
    args = settings(tmp_path, model_path=tokenizer_dir)
    drafter = make_drafter(args, SimpleNamespace(static_shapes=static))
    assert drafter.pad_to == pad_to
    first = SimpleNamespace(tokens=torch.zeros(1), host_ids=[[9, 2, 3], [8, 8]])
    drafter.start(first, [], None)
    draft = drafter.propose()
    width = pad_to or 3
    assert draft.tokens.shape == draft.parents.shape == (2, width)
    assert draft.depth == (10 if static else 2)  # one number for all of a static runtime's drafts
    assert draft.tokens[0].tolist() == [4, 5, 6] + [-1] * (width - 3)
    assert draft.parents[0].tolist() == [-1, -1, 1] + [-1] * (width - 3)
    assert draft.tokens[1].tolist() == [-1] * width


def test_foreign_and_broken_datastores_are_refused(tmp_path, tokenizer_dir):
    target = SimpleNamespace(static_shapes=False)

    def refused(folder, **changes):
        with pytest.raises(BadInput) as caught:
            make_drafter(settings(folder, model_path=tokenizer_dir, **changes), target)
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
