"""REST's suffix ranges and trees against brute force; the datastore is mapped and not read."""

import mmap
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rest_stores import GOLDEN, make_store, random_documents

from model.rest.datastore import open_datastore, sorted_suffixes, write_json
from model.rest.retriever import Retriever


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
