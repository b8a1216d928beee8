"""Files with something wrong in them: edits of bytes, and of values in JSON, by hypothesis."""

import copy
import json
import struct

from hypothesis import strategies as st

DEEP = 3000  # brackets: json's own parser gives up before
WEIRD = [
    None, True, False, 0, -1, 1, 2, 3.5, 1 << 31, 1 << 63, 1 << 70, -(1 << 70), 1e308, -0.0,
    float("nan"), float("inf"), "", " ", "0", "x", "nan", "x" * 70000, "\ud800", "\x00", "\x1b[31m",
    "a\nb", "../../../etc/passwd", "/dev/zero", "{{ 1/0 }}", "<script>alert(1)</script>", [], {},
    [[]], [None], [0], [-1], [1 << 40], [""], [[0, [1]]], {"": ""}, {"a": {"a": {}}},
]  # fmt: skip


def places(document, path=()):
    """Paths of all values in it, itself first."""
    yield path
    if isinstance(document, dict):
        items = document.items()
    else:
        items = enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def at(document, path):
    """The value at a path."""
    for key in path:
        document = document[key]
    return document


@st.composite
def json_edits(draw, document):
    """A document with one to three of its values replaced, removed, doubled or swapped."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(document))))
        if not path:
            continue
        parent, key = at(document, path[:-1]), path[-1]
        kind = draw(st.sampled_from(["weird", "weird", "remove", "double", "other", "wrap"]))
        if kind == "weird":
            parent[key] = copy.deepcopy(draw(st.sampled_from(WEIRD)))  # the next edit may be in it
        elif kind == "remove":
            del parent[key]
        elif kind == "wrap":
            parent[key] = [parent[key]]
        elif kind == "other":
            parent[key] = copy.deepcopy(at(document, draw(st.sampled_from(list(places(document))))))
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[f"{key}_"] = copy.deepcopy(parent[key])
    return document


@st.composite
def byte_edits(draw, content: bytes, until: int | None = None):
    """Bytes with one to four cuts, flips, insertions, repetitions; until: where edits end."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(content), until or len(content))
        begin = draw(st.integers(0, max(end - 1, 0)))
        size = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1024]))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end", "number"]))
        if kind == "flip" and content:
            content[begin] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[begin : begin + size]
        elif kind == "insert":
            content[begin:begin] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "repeat":
            content[begin:begin] = content[begin : begin + size] * draw(st.sampled_from([1, 9]))
        elif kind == "end":
            del content[begin:]
        else:
            huge = draw(st.sampled_from([0, 1, 255, (1 << 31) - 1, (1 << 63) - 1, (1 << 64) - 1]))
            content[begin : begin + 8] = struct.pack("<Q", huge)
    return bytes(content)


def dumped(document) -> bytes:
    """As JSON; what is no number there stays as Python writes it."""
    return json.dumps(document).encode()


@st.composite
def jsonl(draw, content: bytes):
    """Lines of JSON with one of them edited, or lines doubled, swapped or broken as bytes."""
    lines = content.split(b"\n")[:-1]
    kind = draw(st.sampled_from(["json", "json", "json", "bytes", "double", "swap", "deep"]))
    number = draw(st.integers(0, len(lines) - 1))
    if kind == "bytes":
        return draw(byte_edits(content))
    if kind == "json":
        lines[number] = dumped(draw(json_edits(json.loads(lines[number]))))
    elif kind == "double":
        lines.insert(draw(st.integers(0, len(lines))), lines[number])
    elif kind == "swap":
        lines = draw(st.permutations(lines))
    else:
        lines[number] = b"[" * DEEP + b"]" * DEEP
    return b"".join(line + b"\n" for line in lines)


@st.composite
def json_file(draw, content: bytes):
    """One JSON document, edited as such or as bytes."""
    kind = draw(st.sampled_from(["json", "json", "json", "bytes", "deep"]))
    if kind == "bytes":
        return draw(byte_edits(content))
    if kind == "deep":
        return b'{"a":' * DEEP + b"1" + b"}" * DEEP
    return dumped(draw(json_edits(json.loads(content))))


@st.composite
def safetensors(draw, content: bytes):
    """A file whose header is edited, as JSON or bytes; its length is right, or is not."""
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], content[8 + size :]
    if draw(st.booleans()):
        header = dumped(draw(json_edits(json.loads(header))))
        return struct.pack("<Q", len(header)) + header + data
    return draw(byte_edits(content, until=8 + size))
