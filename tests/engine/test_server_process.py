"""--engine-cmd: the server starts with the run and ends with it, however that ends."""

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from file_server import answering
from harness_runs import ROOT, messages, read, read_meta, refusal
from replay_server import replaying
from served_runs import MINI, free_port, run

from model.engine.identity import speculation_of

SERVER = """
import subprocess, sys, time
sys.path[:0] = [{support!r}]
import replay_server
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
print("loading weights", flush=True)
time.sleep({before})
if {dies_after} == 0:
    print("no room for the weights", flush=True)
    sys.exit(7)
replay_server.ThreadingHTTPServer.allow_reuse_address = True
handler = replay_server.Handler
exchange = replay_server.json.loads((replay_server.EXCHANGES / "vllm.json").read_text())
exchange["get"]["/health"] = ""
server = replay_server.ThreadingHTTPServer(("127.0.0.1", {port}), handler)
server.exchange, server.asked, server.number, server.done = exchange, [], 0, 0
server.lock = replay_server.threading.Lock()
if {dies_after} > 0:
    post = handler.do_POST
    def dying(self):
        if server.number == {dies_after}:
            print("out of memory", flush=True)
            replay_server.time.sleep(0.1)
            import os
            os._exit(9)
        post(self)
    handler.do_POST = dying
server.serve_forever()
"""


@pytest.fixture
def command(tmp_path):
    """command(before=0, dies_after=-1) -> (url, a command that serves there)."""

    def make(before=0.0, dies_after=-1):
        port = free_port()
        support = str(ROOT / "tests" / "support")
        script = tmp_path / "server.py"
        script.write_text(
            SERVER.format(support=support, before=before, dies_after=dies_after, port=port)
        )
        return f"http://127.0.0.1:{port}", f"NOTHING=1 {sys.executable} {script}"

    return make


def child_of(folder):
    """The process that the server has started, as its log says."""
    line = (folder / "a-server.log").read_text().splitlines()[0]
    return int(line.removeprefix("child "))


def is_alive(pid):
    """Whether a process runs; one that has ended and is not yet read does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_starts_and_ends_with_the_run(command, tmp_path):
    url, text = command(before=0.5)
    assert run(url, tmp_path, "--engine-cmd", text) == 0
    assert len(read(tmp_path / "a.jsonl")) == 3
    meta = read_meta(tmp_path / "a.jsonl")
    assert meta["environment"]["engine_cmd"] == text
    assert meta["method_args"]["speculation"] == "unnamed"  # no flag says it, its page does
    assert not is_alive(child_of(tmp_path))


def test_a_server_that_does_not_start(command, tmp_path, capfd):
    url, text = command(dies_after=0)
    assert run(url, tmp_path, "--engine-cmd", text) == 2
    *shown, line = messages(capfd)
    assert shown[-1] == "server: no room for the weights"
    assert line.startswith("inference_engine: --engine-cmd: the server ended (status 7)")
    assert not is_alive(child_of(tmp_path))


def test_a_server_that_dies_in_the_run(command, tmp_path, capfd):
    url, text = command(dies_after=3)
    assert run(url, tmp_path, "--engine-cmd", text) == 2
    *shown, line = messages(capfd)
    assert "server: out of memory" in shown
    assert line.startswith("inference_engine: --engine-cmd: the server ended (status 9)")
    records = read(tmp_path / "a.jsonl")
    assert [("error" in record) for record in records] == [False, False, True]
    assert not is_alive(child_of(tmp_path))


def test_a_server_that_is_never_ready(command, tmp_path, capfd):
    url, text = command(before=60)
    assert run(url, tmp_path, "--engine-cmd", text, "--engine-start", 1) == 2
    line = messages(capfd)[-1]
    assert f"{url} was not ready after 1 s" in line
    assert not is_alive(child_of(tmp_path))


def test_a_place_that_is_taken(tmp_path, capfd):
    with replaying("vllm") as server:
        line = refusal(capfd, run(server.url, tmp_path, "--engine-cmd", "true"))
    assert f"{server.url} answers already" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_server(number, command, tmp_path):
    url, text = command(before=60)
    argv = [sys.executable, "-m", "model.engine.inference_engine", "--url", url]
    argv += ["--model-path", MINI, "--dtype", "float32", "--engine-cmd", text]
    argv += ["--answer-file", str(tmp_path / "a.jsonl")]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True, **heard)
    log = tmp_path / "a-server.log"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (log.is_file() and "loading" in log.read_text()):
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines() == ["inference_engine: interrupted; the same command resumes"]
    assert not is_alive(child_of(tmp_path))


def test_a_proxy_of_the_environment_is_not_asked(command, tmp_path, monkeypatch):
    """It knows nothing of servers on this machine."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(503)

        def log_message(self, *args):
            """Say nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    with answering(proxy):
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", proxy.url)
        url, text = command()
        assert run(url, tmp_path, "--engine-cmd", text) == 0


def test_a_file_is_continued_by_its_own_command_alone(command, tmp_path, capfd):
    """On another port, too."""
    url, text = command()
    for own in ("--port 1", "--port=2"):
        assert run(url, tmp_path, "--engine-cmd", f"{text} {own}") == 0
    messages(capfd)
    line = refusal(capfd, run(url, tmp_path, "--engine-cmd", f"{text} --enforce-eager"))
    assert "answers of another run (method_args.engine_cmd_sha256" in line


@pytest.mark.parametrize(
    "words",
    [
        """vllm serve M --speculative-config '{"method": "ngram"}'""",
        """vllm serve M -sc '{"method": "ngram"}'""",
        """vllm serve M -sc='{"method": "ngram"}'""",
        "vllm serve M -sc.method ngram --config c.yaml",
        "python -m sglang.launch_server --speculative-algorithm EAGLE3",
        "llama-server -m M -md D.gguf",
        "llama-server -m M --model-draft D.gguf",
        "llama-server -m M -hfd ORG/D",
        "llama-server -m M -hfrd ORG/D",
        "llama-server -m M --hf-repo-draft ORG/D",
        "llama-server -m M --spec-type ngram-mod",
        "LLAMA_ARG_MODEL_DRAFT=D.gguf llama-server -m M",
    ],
)
def test_every_spelling_of_speculation_is_known(words):
    assert speculation_of(words) not in (None, "none")


@pytest.mark.parametrize(
    "words, said",
    [
        ("vllm serve M -tp 2 --scheduling-policy fcfs --seed 1", "none"),
        ("llama-server -m M -hf ORG/M -sm none", "none"),
        ("vllm serve M --config c.yaml", None),
        ("vllm serve M --config=c.yaml", None),
    ],
)
def test_a_command_without_flags_of_speculation(words, said):
    """A file of settings may hold them, so that nobody knows."""
    assert speculation_of(words) == said
