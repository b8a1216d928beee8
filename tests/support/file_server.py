"""A web server on this machine: good answers, cut ones, and none."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CUT = 30000  # bytes that /cut sends


class Handler(BaseHTTPRequestHandler):
    """Serves server.files[path], else server.content; the path chooses how badly."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        server.paths.append(self.path)
        body, status = server.files.get(self.path, server.content), 200
        if self.path == "/missing" or body is None:
            return self.send_error(404)
        total = len(body)
        if asked and self.path != "/rangeless":
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            body, status = body[start:], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(body[:CUT] if self.path == "/cut" else body)

    def log_message(self, *args):
        """Say nothing."""


@contextmanager
def answering(server):
    """A server answers in a thread of its own, and has a .url."""
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(content, files=()):
    """A server of `content` under every path but those of files {path: bytes}; None is not there.

    .url, .paths and .ranges asked for so far.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.files, server.ranges, server.paths = content, dict(files), [], []
    with answering(server):
        yield server
