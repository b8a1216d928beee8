"""data/download.py against a server on this machine: good, cut, altered and resumed downloads."""

import hashlib
import os
from dataclasses import replace

import pytest
from answer_samples import assert_refused, run_tool
from file_server import serving

from data import download
from data.fetching.web import Published

CONTENT = b'{"question_id": 1}\n' * 20000  # more than one block


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(CONTENT) as server:
        yield server


@pytest.fixture
def fetch(monkeypatch, tmp_path, capsys):
    """Run main() for a set whose bytes are CONTENT; returns (status, stdout, stderr)."""
    source = replace(
        download.SETS["spec_bench"],
        published=Published(len(CONTENT), fetch_sha(CONTENT)),
        output=tmp_path / "made" / "question.jsonl",
    )
    monkeypatch.setitem(download.SETS, "spec_bench", source)

    def run(url, *args):
        status = download.main(["spec_bench", "--url", url, *map(str, args)])
        return status, *capsys.readouterr()

    run.output = source.output
    run.part = source.output.with_name("question.jsonl.part")
    return run


def assert_failed(result, *parts):
    status, _, stderr = result
    assert status == 2 and len(stderr.splitlines()) == 1
    for part in parts:
        assert part in stderr


def test_good_download_is_kept_when_called_again(server, fetch):
    status, stdout, _ = fetch(f"{server.url}/q")
    assert status == 0 and "sha256 verified" in stdout
    assert fetch.output.read_bytes() == CONTENT and not fetch.part.exists()
    status, stdout, _ = fetch("http://127.0.0.1:9/nobody")
    assert status == 0 and "already there" in stdout
    assert server.ranges == [None]


def test_cut_connection_is_resumed(server, fetch):
    assert_failed(fetch(f"{server.url}/cut"), "truncated: 30000 of 380000 bytes")
    assert fetch.part.stat().st_size == 30000 and not fetch.output.exists()
    assert fetch(f"{server.url}/q")[0] == 0
    assert server.ranges == [None, "bytes=30000-"]
    assert fetch.output.read_bytes() == CONTENT


def test_server_without_ranges_sends_all_of_it(server, fetch):
    fetch(f"{server.url}/cut")
    assert fetch(f"{server.url}/rangeless")[0] == 0
    assert fetch.output.read_bytes() == CONTENT


def test_short_file_on_the_server(server, fetch):
    server.content = CONTENT[:1000]
    assert_failed(fetch(f"{server.url}/q"), "truncated: 1000 of 380000 bytes")


def test_altered_and_longer_files_are_refused(server, fetch):
    server.content = CONTENT[:-2] + b"]\n"
    assert_failed(fetch(f"{server.url}/q"), "wrong sha256", fetch_sha(CONTENT))
    assert not fetch.part.exists() and not fetch.output.exists()
    server.content = CONTENT + b"\n"
    assert_failed(fetch(f"{server.url}/q"), "more than the expected 380000 bytes")
    assert not fetch.output.exists()


def fetch_sha(content):
    return hashlib.sha256(content).hexdigest()


def test_a_part_of_another_file_is_fetched_afresh(server, fetch):
    fetch.part.parent.mkdir()
    for other in (b"x" * 500, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)):
        fetch.part.write_bytes(other)
        assert fetch(f"{server.url}/q")[0] == 0
        assert fetch.output.read_bytes() == CONTENT
        fetch.output.unlink()


def test_what_is_there_is_never_overwritten(server, fetch):
    fetch.output.parent.mkdir()
    fetch.output.write_text("my own notes")
    assert_failed(fetch(f"{server.url}/q"), str(fetch.output), "another sha256")
    assert fetch.output.read_text() == "my own notes" and server.ranges == []
    assert_failed(fetch(f"{server.url}/q", "--output", fetch.output.parent), "a folder")


def test_network_failures_are_one_line(server, fetch):
    assert_failed(fetch(f"{server.url}/missing"), "/missing: HTTP status 404")
    server.shutdown()
    server.server_close()
    assert_failed(fetch(f"{server.url}/q"), "network failure")
    assert_failed(fetch("file:///etc/hostname"), "--url file:///etc/hostname")


def test_command_line(tmp_path):
    env = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    args = ("spec_bench", "--url", "http://127.0.0.1:9/q", "--output", tmp_path / "q.jsonl")
    assert_refused(run_tool("data/download.py", *args, cwd=tmp_path, env=env), "network failure")
    done = run_tool("data/download.py", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("spec_bench", "smollm2", "gemma3-270m", "prompts"))
    assert_refused(run_tool("data/download.py"), "NAME")
    assert_refused(run_tool("data/download.py", "smollm2", "--url", "http://x"), "--url")
    assert_refused(run_tool("data/download.py", "spec_bench", "--from", "hub"), "--from")
    assert_refused(run_tool("data/download.py", "other_bench"), "other_bench")
    assert download.SETS["spec_bench"].published.sha256.startswith("4b6d33e7")
