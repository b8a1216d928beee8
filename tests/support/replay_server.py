"""A server that replays exchanges: what vLLM, SGLang, llama.cpp and others send, and how they fail.

An exchange is a JSON file:

    get      {path: page}: an object of JSON, or a text
    path     of the interface that answers; others are 404
    answers  what POST gives, one after the other, the last one again and again. Each is
             {"events": [...]}: a stream, of objects (an event each), and of
                 "[DONE]"            the last event
                 {"wait_s": n}       silence; {"stall": true}: until the client has gone
                 {"drop": true}      the connection is cut; {"leave": true}: and nobody listens on
                 {"raw": "text"}     bytes as they stand
                 {"split": n}        from here on, writes of n bytes: events and characters in parts
             {"status": 429, "headers": {...}, "body": {...}}: a refusal

"$prompt" in an event stands for the number of the prompt's token ids, "$drafts" and the like on a
page for the number that `counters` has after so many answers.
"""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from file_server import answering

EXCHANGES = Path(__file__).resolve().parents[1] / "engine" / "exchanges"
LONGEST_S = 30.0  # of a stall
CONTROLS = {"wait_s", "stall", "drop", "leave", "split"}


class Handler(BaseHTTPRequestHandler):
    """Plays server.exchange."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        page = self.server.exchange["get"].get(self.path.partition("?")[0])
        if page is None:
            return self._whole(404, {"error": {"message": f"no page {self.path}"}})
        if isinstance(page, str):
            for name, values in self.server.exchange.get("counters", {}).items():
                page = page.replace(f"${name}", str(values[min(self.server.done, len(values) - 1)]))
        self._whole(200, page)

    def do_POST(self):
        server, size = self.server, int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(size))
        with server.lock:
            server.asked.append((self.path, body))
            if self.path != server.exchange["path"]:
                return self._whole(404, {"error": {"message": f"no page {self.path}"}})
            answers = server.exchange["answers"]
            answer = answers[min(server.number, len(answers) - 1)]
            server.number += 1
        if "events" not in answer:
            return self._whole(answer["status"], answer["body"], answer.get("headers", {}))
        server.done += 1
        self._stream(answer["events"], body)

    def _whole(self, status, page, headers=()):
        data = page.encode() if isinstance(page, str) else json.dumps(page).encode()
        self.send_response(status)
        kind = "text/plain" if isinstance(page, str) else "application/json"
        for name, value in {"Content-Type": kind, **dict(headers)}.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        size = None
        for event in events:
            if isinstance(event, dict) and event.keys() & CONTROLS:
                size = event.get("split", size)
                if event.get("leave"):
                    self.server.shutdown()
                    self.server.server_close()
                if event.get("drop") or event.get("leave"):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                time.sleep(event.get("wait_s", 0.0))
                if event.get("stall") and self._left():
                    return
                continue
            self._send(self._text(event, body).encode(), size)
        self._send(b"", None)

    def _text(self, event, body):
        if isinstance(event, dict) and "raw" in event:
            return event["raw"]
        text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
        text = text.replace('"$prompt"', str(len(body.get("prompt", []))))
        return f"data: {text}\n\n"

    def _send(self, data, size):
        """HTTP chunks, of `size` bytes or whole."""
        parts = [data[i : i + size] for i in range(0, len(data), size)] if size else [data]
        for part in parts:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()
            if size:
                time.sleep(0.001)  # so that they do not leave together

    def _left(self):
        """Wait until the client has closed the connection; whether it did."""
        self.connection.settimeout(LONGEST_S)
        try:
            return self.connection.recv(1) == b""
        except OSError:
            return True

    def log_message(self, *args):
        """Say nothing."""


@contextmanager
def replaying(exchange, **changed):
    """A server of an exchange, a file's name or a dict; `changed` parts stand in place of its own.

    .url, .asked: [(path, body)] so far.
    """
    if isinstance(exchange, str):
        exchange = json.loads((EXCHANGES / f"{exchange}.json").read_text(encoding="utf-8"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.exchange = {**exchange, **changed}
    server.asked, server.number, server.done, server.lock = [], 0, 0, threading.Lock()
    with answering(server):
        yield server
