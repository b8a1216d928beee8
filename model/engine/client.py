"""Requests to a server, and the times at which the events of its answers came.

aiohttp reads them: its parser is C, so that a stream's events are stamped soon after they came, and
it is what the benchmark tools of vLLM and SGLang use.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import resource
from dataclasses import dataclass, field

from model.common.errors import BadInput, parse_json
from model.common.loop.clock import HostTime
from model.engine.dialects import Event, error_in, read_event

RETRIED = (429, 502, 503, 504)  # "later", in HTTP
LONGEST_WAIT_S = 30.0  # between two tries
CONNECT_S = 10.0
RESERVED = 64  # files that are no connections: answers, libraries, a server's log


class ServerError(Exception):
    """A request that has no answer: one line, for the question's record.

    status   HTTP's, 0 where none came; later: the server asks to be tried again, after wait_s
    refused  the connection was: nobody listened there at that moment
    """

    def __init__(self, message: str, status: int = 0, wait_s: float = 0.0, refused: bool = False):
        super().__init__(" ".join(message.split())[:500])
        self.status, self.wait_s, self.refused = status, wait_s, refused

    @property
    def later(self) -> bool:
        return self.status in RETRIED


@dataclass
class Reply:
    """A whole answer as it came.

    begin_s   Unix time at which the request was sent
    events    [(seconds after it, Event)]
    tries     requests that were needed
    """

    begin_s: float
    events: list[tuple[float, Event]] = field(default_factory=list)
    tries: int = 1


def open_files() -> float:
    """Most files, connections among them, that this process may have open at a time.

    The soft limit is raised to the hard one first.
    """
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS takes no infinite one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        limit = hard
    return math.inf if limit == resource.RLIM_INFINITY else limit


class Client:
    """A server by its URL.

    stall_s  longest silence within an answer
    retries  of a request that the server puts off (HTTP 429, 502, 503, 504)
    host     the time that answers are stamped in
    most     requests in flight; one more fails, since files could not be written beside them
    """

    def __init__(self, url: str, stall_s: float, retries: int, host: HostTime, key=None):
        self.url, self.stall_s, self.retries, self.key = url.rstrip("/"), stall_s, retries, key
        self.host, self.in_flight = host, 0

    async def __aenter__(self):
        import aiohttp

        self.most = max(open_files() - RESERVED, 1)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_S, sock_read=self.stall_s or None
        )
        self.session = aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *exception):
        await self.session.close()

    async def get(self, path: str):
        """What GET gives: an object of JSON, a text, or None where the server has no such page."""
        with _network(self.url, "no answer"):
            async with self.session.get(self.url + path) as response:
                if response.status != 200:
                    return None
                text = await response.text(errors="replace")
        try:
            return parse_json(text)
        except ValueError:
            return text

    async def ask(self, path: str, body: dict) -> Reply:
        """A streamed answer. Raises ServerError where there is none, or no whole one."""
        for number in range(1, self.retries + 2):
            if self.in_flight >= self.most:
                raise ServerError(f"{self.most} requests are in flight, as many as `ulimit -n` has")
            self.in_flight += 1
            try:
                reply = await self._ask(path, body)
            except ServerError as error:
                if not error.later or number > self.retries:
                    raise
                wait_s = error.wait_s or 2.0 ** (number - 1)
            else:
                reply.tries = number
                return reply
            finally:
                self.in_flight -= 1
            await asyncio.sleep(min(wait_s, LONGEST_WAIT_S))
        raise AssertionError("the last try returns or raises")

    async def _ask(self, path: str, body: dict) -> Reply:
        payload = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        begin = self.host.now()
        reply = Reply(self.host.unix + begin)
        with _network(self.url, "the answer ended", reply):
            async with self.session.post(self.url + path, data=payload, headers=headers) as answer:
                if answer.status != 200:
                    raise refusal(answer.status, answer.headers, await answer.text())
                if "event-stream" not in answer.headers.get("Content-Type", ""):
                    kind = answer.headers.get("Content-Type", "nothing")
                    raise ServerError(f"the server does not stream: it sent {kind}", 200)
                async for stamp, text in server_events(answer.content, self.host.now):
                    if text != "[DONE]":
                        reply.events.append((stamp - begin, parsed(text)))
        if not any(event.finish for _, event in reply.events):
            raise ServerError(f"the stream ended without a finish reason {_after(reply)}")
        return reply


async def server_events(content, now):
    """Yield (now() when it came, data) of a stream of server-sent events.

    Comments, names and ids of events are passed over; lines of data are one text.
    """
    rest, data = b"", []
    async for block in content.iter_any():
        stamp = now()
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield stamp, b"\n".join(data).decode("utf-8", "replace")
                data = []


def parsed(text: str) -> Event:
    """An event's data. Raises ServerError for an error in the stream, and for what is no event."""
    try:
        event = read_event(parse_json(text))
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ServerError(f"an event that cannot be read ({error}): {text[:120]}") from error
    if event.error is not None:
        raise ServerError(f"the server ended the stream: {event.error}")
    return event


def refusal(status: int, headers, text: str) -> ServerError:
    """What an HTTP status other than 200 says."""
    try:
        message = error_in(parse_json(text)) or text
    except (ValueError, AttributeError):
        message = text
    try:
        wait_s = max(float(headers.get("Retry-After", 0)), 0.0)
    except ValueError:  # a date
        wait_s = 0.0
    return ServerError(f"HTTP {status}: {message.strip() or 'no message'}", status, wait_s)


def _after(reply: Reply) -> str:
    """'after 3 events'."""
    count = len(reply.events)
    return f"after {count} event{'s' * (count != 1)}"


class _network:
    """A context in which a broken connection is a ServerError."""

    def __init__(self, url: str, what: str, reply: Reply | None = None):
        self.url, self.what, self.reply = url, what, reply

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        import aiohttp

        after = f" {_after(self.reply)}" if self.reply else ""
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            reason = getattr(error, "os_error", None) or "no connection"
            raise ServerError(
                f"{self.url} cannot be reached: {reason}",
                refused=isinstance(reason, ConnectionRefusedError),
            ) from error
        if isinstance(error, aiohttp.SocketTimeoutError | TimeoutError):
            raise ServerError(f"the server stalled{after}") from error
        if isinstance(error, aiohttp.InvalidURL):
            raise BadInput(f"--url {self.url}: no URL") from error
        if isinstance(error, aiohttp.ClientError | ConnectionError):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ServerError(f"the connection broke{after}: {reason}") from error
        return False
