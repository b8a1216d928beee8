"""data/download.py prompts on small sources: how each kind is made, and every way to fail."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from file_server import serving

from data import download
from data.fetching import prompt_sources as sources
from data.fetching import prompts
from data.fetching.web import Published
from model.common.prompts.questions import read_questions

LONG = "word " * 701


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def task(instruction, text=""):
    return {"instruction": instruction, "instances": [{"input": text, "output": "no"}]}


def contents():
    """{source: bytes}, of three problems, three sentences, a few tasks and two texts a template."""
    made = {
        sources.MATHS: lines(
            {"question": f"How\u2028many are {i}? ", "answer": "4"} for i in range(3)
        ),
        sources.GERMAN: gzip.compress("Ein Hund.\nZwei\u2028Hunde. \nDrei.\n".encode()),
        sources.SEED_TASKS: lines(
            [
                task("Too short."),
                task("Mend this program, please.", "def f():\n    \n    return  1"),
            ]
        ),
        sources.USER_TASKS: lines([task("Write a letter to your aunt."), task("Sum up: " + LONG)]),
    }
    for name, source in sources.TEMPLATES.items():
        end = "It rains. " * 20 if name in sources.ARTICLES else name
        texts = [f"{name} {i}: \r\n\n\n text\n{end}{i}\n" for i in range(2)]
        made[source] = lines({"prompt": text, "completion": "no"} for text in texts)
    return made


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    """A function that runs main(): (status, stdout, stderr); small sources, pinned, on a server."""
    small = {source.path: content for source, content in contents().items()}

    def pinned(source):
        content = small[source.path]
        digest = hashlib.sha256(content).hexdigest()
        return source._replace(published=Published(len(content), digest))

    for name in ("MATHS", "GERMAN", "SEED_TASKS", "USER_TASKS"):
        monkeypatch.setattr(sources, name, pinned(getattr(sources, name)))
    templates = {name: pinned(source) for name, source in sources.TEMPLATES.items()}
    monkeypatch.setattr(sources, "TEMPLATES", templates)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    output = tmp_path / "prompts" / "train.jsonl"
    with serving(b"") as server:
        server.files = {
            f"/{source.repository}/{source.commit}/{source.path}": small[source.path]
            for source in prompts.every_source()
        }

        def run(*args):
            found = ["prompts", "--url", server.url, "--output", str(output), *args]
            return download.main(found), *capsys.readouterr()

        run.server, run.output = server, output
        yield run


def pin(made, monkeypatch):
    """Take what the sources make now as what they have to make; returns its records."""
    status, _, stderr = made()
    assert status == 2 and "made of the right sources" in stderr and not made.output.exists()
    content = made.output.with_name("train.jsonl.part").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest in stderr
    monkeypatch.setattr(sources, "PROMPTS", Published(len(content), digest))
    return [json.loads(line) for line in content.decode().split("\n") if line]


def test_each_kind_is_made_as_described(made, monkeypatch):
    records = pin(made, monkeypatch)
    assert [record["question_id"] for record in records] == list(range(1, len(records) + 1))
    kinds = {}
    for record in records:
        kinds.setdefault(record["category"], []).append((record["source"], record["turns"]))
    maths = sorted(turns for _, turns in kinds["math_reasoning"])
    assert maths == [[f"How\u2028many are {i}?"] for i in range(3)]
    german = {turns[0] for _, turns in kinds["translation"]}
    head = "Translate German to English: "
    assert german == {head + text for text in ("Ein Hund.", "Zwei\u2028Hunde.", "Drei.", "")}
    for category, names in (("rag", sources.PARAGRAPHS), ("qa", sources.QUESTIONS)):
        wanted = [(name, [f"{name} {i}:\n text\n{name}{i}"]) for name in names for i in range(2)]
        assert sorted(kinds[category]) == sorted(wanted)
    summaries = [source for source, _ in kinds["summarization"]]
    assert summaries.count("samsum") == 6  # all of the dialogues; of the articles each once
    assert len(summaries) == 8 and any(s.startswith("cnn_dailymail ") for s in summaries)
    writing = dict(kinds["writing"])
    assert set(writing) == {"self-instruct seed tasks", "self-instruct user oriented"}
    assert len(kinds["writing"]) == 2  # the third is too short, the fourth too long
    program, second = writing["self-instruct seed tasks"]
    assert program == "Mend this program, please.\ndef f():\n    return  1"
    assert second in prompts.SECOND_TURNS


def test_the_file_is_the_same_every_time_and_a_question_file(made, monkeypatch):
    records = pin(made, monkeypatch)
    status, stdout, _ = made()
    assert status == 0 and f"{len(records)} prompts, sha256 verified" in stdout
    questions = read_questions(made.output)
    assert [q["turns"] for q in questions] == [record["turns"] for record in records]
    asked = len(made.server.paths)
    status, stdout, _ = made()
    assert status == 0 and "already there" in stdout and len(made.server.paths) == asked


def test_a_source_that_is_there_is_not_fetched_again(made, monkeypatch):
    missing = next(iter(sources.TEMPLATES.values()))
    address = missing.address("")
    content = made.server.files[address]
    made.server.files[address] = None
    status, _, stderr = made()
    assert status == 2 and len(stderr.splitlines()) == 1
    assert "404" in stderr and missing.path in stderr
    made.server.files[address] = content[:-2] + b" \n"
    assert "wrong sha256" in made()[2]
    made.server.files[address] = content
    before = len(made.server.paths)
    pin(made, monkeypatch)
    again = made.server.paths[before:]
    assert again[0] == address and len(again) == len(set(again))
    assert sources.MATHS.address("") not in again  # it came before the one that was missing


def test_another_file_of_the_name_is_left_alone(made):
    made.output.parent.mkdir()
    made.output.write_text("mine")
    status, _, stderr = made()
    assert status == 2 and str(made.output) in stderr and made.output.read_text() == "mine"
    status, _, stderr = made("--output", str(made.output.parent))
    assert status == 2 and "--output names a file" in stderr
    status, _, stderr = made("--url", "/a/folder")
    assert status == 2 and "--url /a/folder" in stderr


def test_pins_are_whole():
    """The published file's, and a source for every template."""
    pins = [source.published for source in prompts.every_source()]
    assert len(pins) == 30 and len({pin.sha256 for pin in pins}) == 30
    assert all(len(pin.sha256) == 64 for pin in pins)
    assert sum(pin.num_bytes for pin in pins) < 13_000_000
    assert sources.PROMPTS.sha256.startswith("457a431e") and Path(sources.GERMAN.path).suffix
