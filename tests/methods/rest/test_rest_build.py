"""REST's builder: what it reads, what it refuses, and that an interrupted build gives the same."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_tokenizer
from rest_stores import SOURCE, Ids, make_store

from model.common.errors import BadInput
from model.rest import build_datastore, corpus, writer
from model.rest.datastore import open_datastore, token_bytes
from model.rest.writer import Writer, settings_of

TEXTS = ["Hello there.", "Grüße, 你好!", "x" * 40, "a b", "the end\n"]


def build(tokenizer_dir, source, output, *flags, code=0):
    """Run the builder in this process."""
    argv = ["--model-path", tokenizer_dir, "--input", source, "--output", output, *flags]
    try:
        build_datastore.main([str(part) for part in argv])
        ended = 0
    except SystemExit as stopped:
        ended = stopped.code
    assert ended == code


def documents_of(folder):
    """The texts of a datastore."""
    store, tokenizer = open_datastore(str(folder)), make_tokenizer()
    documents, ids = [], []
    for token in store.tokens.tolist():
        if token == store.separator:
            documents.append(tokenizer.decode(ids))
            ids = []
        else:
            ids.append(token)
    assert ids == []
    return documents


def lines(path, *records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


def chat(*texts):
    names = ("human", "gpt")
    turns = [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "x", "conversations": turns}


def data_files(folder):
    return [(Path(folder) / name).read_bytes() for name in ("tokens.bin", "suffixes.bin")]


@pytest.mark.parametrize(
    "name, content",
    [
        ("chat.jsonl", [chat(*TEXTS[:2]), chat(), chat(*TEXTS[2:])]),
        ("text.jsonl", [{"text": text} for text in TEXTS]),
        ("mixed.jsonl", [{"content": TEXTS[0]}, {"text": TEXTS[1]}, chat(*TEXTS[2:], "")]),
        ("chat.json", [chat(*TEXTS[:3]), chat(*TEXTS[3:])]),
    ],
)
def test_records(tmp_path, tokenizer_dir, name, content, monkeypatch):
    path = tmp_path / name
    if name.endswith(".json"):
        monkeypatch.setattr(corpus, "BLOCK", 7)  # elements are longer than what is read at a time
        path.write_text(json.dumps(content, indent=2))
    else:
        lines(path, *content)
    build(tokenizer_dir, path, tmp_path / "store")
    assert documents_of(tmp_path / "store") == TEXTS
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["num_documents"] == 5 and manifest["num_bad"] == 0
    assert manifest["num_tokens"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest["source"]["name"] == name
    assert manifest["source"]["bytes"] == path.stat().st_size
    assert manifest["vocab_size"] == 258 and manifest["token_bytes"] == 2
    assert not (tmp_path / "store" / "progress.json").exists()


def test_folder_of_sources(tmp_path, tokenizer_dir, capsys):
    root = tmp_path / "src"
    (root / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("hidden")
    (root / "b" / "two.py").write_bytes(b"x = 1\r\n")
    (root / "a.py").write_text("print(1)\n")
    (root / "c.md").write_text("# c\n")
    (root / "z.bin").write_bytes(b"\xff\xfe\x00")
    lines(root / "d.jsonl", {"text": "record"})
    build(tokenizer_dir, root, tmp_path / "all")
    assert "z.bin: not UTF-8" in capsys.readouterr().err
    assert documents_of(tmp_path / "all") == ["print(1)\n", "x = 1\r\n", "# c\n", "record"]
    build(tokenizer_dir, root, tmp_path / "some", "--extensions", ".py, .md")
    assert documents_of(tmp_path / "some") == ["print(1)\n", "x = 1\r\n", "# c\n"]
    build(tokenizer_dir, root, tmp_path / "none", "--extensions", ".rs", code=2)
    assert "no files of .rs" in capsys.readouterr().err


def test_long_files_are_read_in_pieces(tmp_path, tokenizer_dir, monkeypatch):
    text = "".join(f"line {i} ü\n" for i in range(300)) + "y" * 100
    (tmp_path / "long.txt").write_text(text, "utf-8")
    monkeypatch.setattr(corpus, "PIECE", 50)
    monkeypatch.setattr(build_datastore, "BATCH", 120)
    pieces = list(corpus.Corpus(str(tmp_path / "long.txt")).pieces())
    assert "".join(piece for piece, _, _ in pieces) == text
    assert [first for _, first, _ in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [last for _, _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(piece) for piece, _, _ in pieces) <= 100
    assert list(corpus.cut(text)) == pieces
    assert all(piece[-1] in "\ny" for piece, _, _ in pieces[:-1])
    build(tokenizer_dir, tmp_path / "long.txt", tmp_path / "store")
    assert documents_of(tmp_path / "store") == [text]
    lines(tmp_path / "long.jsonl", {"text": text})
    build(tokenizer_dir, tmp_path / "long.jsonl", tmp_path / "same")
    assert data_files(tmp_path / "same") == data_files(tmp_path / "store")


def test_special_tokens_stand_at_a_documents_begin_only():
    def tokenizer(texts, add_special_tokens, **_):
        ids = [[1] * add_special_tokens + [*map(ord, text)] for text in texts]
        return SimpleNamespace(input_ids=ids)

    pieces = [("a", True, False), ("b", False, True), ("c", True, True)]
    found = list(build_datastore.tokenised(tokenizer, iter(pieces), 0))
    assert found == [([1, 97], False), ([98], True), ([1, 99], True)]
    assert list(build_datastore.tokenised(tokenizer, iter(pieces), 1)) == found[1:]


def test_bad_records_are_counted_and_named(tmp_path, tokenizer_dir, capsys):
    path = tmp_path / "bad.jsonl"
    bad = [b"{", b"\xff\xfe", b"3", b"[]", b'{"other": 1}', b'{"text": 3}', b'{"text": "\\ud800"}']
    bad += [b'{"conversations": 3}', b'{"conversations": ["x"]}', b'{"conversations": [{"v": 1}]}']
    bad += [b"null", b'"text"']
    path.write_bytes(b"\n".join([*bad, b"", b'{"text": "good"}', b'{"text": ""}']))
    build(tokenizer_dir, path, tmp_path / "store")
    output = capsys.readouterr()
    assert documents_of(tmp_path / "store") == ["good"]
    assert [f"bad.jsonl:{n}:" in output.err for n in range(1, 12)] == [True] * 10 + [False]
    assert "2 more were left out" in output.err and "12 bad records" in output.out
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["num_bad"] == 12


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": ""}\n', b"{\n", b'{"a": 1}'])
def test_nothing_left_is_refused(tmp_path, tokenizer_dir, content, capsys):
    (tmp_path / "empty.jsonl").write_bytes(content)
    build(tokenizer_dir, tmp_path / "empty.jsonl", tmp_path / "store", code=2)
    assert "empty.jsonl: no text" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_unreadable_input_and_output(tmp_path, tokenizer_dir, capsys):
    (tmp_path / "folder").mkdir()
    source, store = lines(tmp_path / "a.jsonl", {"text": "text"}), tmp_path / "store"
    for given, word in (
        ((tokenizer_dir, tmp_path / "none", store), "none: no such file"),
        ((tokenizer_dir, tmp_path / "folder", store), "no files"),
        ((tokenizer_dir, source, source), "a.jsonl: File exists"),
        ((tmp_path / "folder", source, store), "folder"),
        ((tokenizer_dir, source, store, "--chunk-tokens", 1 << 31), "at most 1073741823"),
        ((tokenizer_dir, source, store, "--chunk-tokens", 3), "--chunk-tokens"),
    ):
        build(*given, code=2)
        (line,) = capsys.readouterr().err.splitlines()
        assert word in line


def test_a_cut_array_is_read_to_where_it_ends(tmp_path, tokenizer_dir, capsys):
    (tmp_path / "cut.json").write_text('[{"text": "one"}, {"text": ')
    build(tokenizer_dir, tmp_path / "cut.json", tmp_path / "store")
    assert "element 2: not JSON" in capsys.readouterr().err
    assert documents_of(tmp_path / "store") == ["one"]


def test_chunks_hold_whole_documents_where_they_fit(tmp_path):
    documents = [[1] * 6, [2] * 6, [3] * 8, [4] * 40, [5], [], [6] * 15]
    store = make_store(tmp_path, documents, chunk_tokens=16)
    chunks = [store.tokens[begin : begin + size].tolist() for begin, size in store.chunks]
    end = 65535
    assert chunks == [
        [1] * 6 + [end] + [2] * 6 + [end],
        [3] * 8 + [end],
        [4] * 15 + [end],
        [4] * 15 + [end],
        [4] * 10 + [end, 5, end],
        [6] * 15 + [end],
    ]
    assert store.manifest["num_documents"] == 6
    assert store.manifest["num_tokens"] == sum(map(len, documents))
    for begin, size in store.chunks:
        order = store.suffixes[begin : begin + size].tolist()
        tokens = store.tokens[begin : begin + size].tolist()
        assert order == sorted(range(size), key=lambda i: tokens[i:])


def test_without_separators_only_chunks_end(tmp_path):
    store = make_store(tmp_path, [[1] * 6, [2] * 6, [3] * 4], chunk_tokens=16, separators=False)
    assert store.tokens.tolist() == [1] * 6 + [2] * 6 + [65535] + [3] * 4 + [65535]


def test_ids_fit_their_width(tmp_path):
    assert [token_bytes(n) for n in (258, 65535, 65536, 151_669)] == [2, 2, 4, 4]
    with pytest.raises(BadInput, match="70000"):
        make_store(tmp_path, [[1, 70_000]])


class Killed(BaseException):
    """A kill that no handler catches."""


@pytest.mark.parametrize("where", ["sort", "write_json", "fsync"])
@pytest.mark.parametrize("size", [100, 70_000])
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path, monkeypatch, where, size):
    documents = [[(7 * i + k) % 50 for k in range(3 + i * i % 70)] for i in range(40)]
    whole = make_store(tmp_path / "whole", documents, size, chunk_tokens=64)
    assert len(whole.chunks) > 10
    settings = settings_of(Ids(size), "test", SOURCE, 64)
    name = {"sort": "sorted_suffixes", "write_json": "write_json", "fsync": "os.fsync"}[where]
    owner = writer.os if where == "fsync" else writer
    name = name.split(".")[-1]
    real, calls = getattr(owner, name), []

    def dies(*args):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise Killed
        return real(*args)

    monkeypatch.setattr(owner, name, dies)
    for _life in range(50):
        try:
            building = Writer(str(tmp_path / "killed"), settings)
            for ids in documents[building.num_pieces :]:
                building.add(ids, True)
            building.finish(0)
            break
        except Killed:
            building.file.close()
    assert len(calls) > 8
    assert data_files(tmp_path / "killed") == data_files(tmp_path / "whole")
    store = open_datastore(str(tmp_path / "killed"))
    drop = ("build_s", "created")
    assert {k: v for k, v in store.manifest.items() if k not in drop} == {
        k: v for k, v in whole.manifest.items() if k not in drop
    }


def test_an_interrupted_command_goes_on(tmp_path, tokenizer_dir, monkeypatch, capsys):
    source = lines(tmp_path / "a.jsonl", *[{"text": f"text {i} of many"} for i in range(60)])
    source.open("a").write("bad line\n")
    flags = ("--chunk-tokens", 200)
    build(tokenizer_dir, source, tmp_path / "whole", *flags)
    real, calls = writer.sorted_suffixes, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(writer, "sorted_suffixes", interrupted)
    build(tokenizer_dir, source, tmp_path / "cut", *flags, code=130)
    assert "the same command goes on" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "cut" / "progress.json").read_text())["state"]["chunks"]) == 2
    with pytest.raises(BadInput, match="build finished"):
        open_datastore(str(tmp_path / "cut"))
    build(tokenizer_dir, source, tmp_path / "cut", "--chunk-tokens", 300, code=2)
    assert "another chunk_tokens" in capsys.readouterr().err
    build(tokenizer_dir, source, tmp_path / "cut", *flags)
    assert data_files(tmp_path / "cut") == data_files(tmp_path / "whole")
    assert "1 bad records" in capsys.readouterr().out


def test_finished_datastores_are_kept_or_replaced(tmp_path, tokenizer_dir, capsys):
    source = lines(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    store = tmp_path / "store"
    build(tokenizer_dir, source, store)
    created = (store / "manifest.json").read_text()
    build(tokenizer_dir, source, store)
    assert (store / "manifest.json").read_text() == created
    lines(source, {"text": "other"})
    build(tokenizer_dir, source, store, code=2)
    assert "another source" in capsys.readouterr().err
    build(tokenizer_dir, source, store, "--overwrite")
    assert documents_of(store) == ["other"]
    (store / "manifest.json").rename(store / "progress.json")
    build(tokenizer_dir, source, store, code=2)
    assert "--overwrite" in capsys.readouterr().err


def test_shortened_files_of_an_unfinished_build_are_refused(tmp_path):
    settings = settings_of(Ids(100), "test", SOURCE, 16)
    building = Writer(str(tmp_path), settings)
    for ids in ([1] * 12, [2] * 12):
        building.add(ids, True)
    building.file.close()
    (tmp_path / "suffixes.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="suffixes.bin: shorter"):
        Writer(str(tmp_path), settings)


def test_help_loads_nothing_heavy():
    code = (
        "import sys, model.rest.build_datastore, model.rest.inference_rest as i; "
        "from model.common.args import make_parser; "
        "make_parser('rest', i.__doc__, i.add_args).format_help(); "
        "model.rest.build_datastore.make_parser().format_help(); "
        "print(sorted({'torch', 'numpy', 'numba', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_memory_of_a_sort_is_bounded():
    """The suffixes come in blocks, so that only one array of them is held."""
    from model.rest import datastore

    tokens = np.arange(datastore.BLOCK, dtype="<u2")
    tokens[-1] = 65535
    blocks = list(datastore.sorted_suffixes(tokens, 2))
    assert len(blocks) == 2 and sum(map(len, blocks)) == len(tokens)
    assert all(block.dtype == np.uint32 and len(block) < datastore.BLOCK for block in blocks)
