"""Fetch a public question set and check that it is, byte for byte, the one the numbers refer to.

Run:  python data/download.py spec_bench
      python data/download.py spec_bench --url https://MIRROR/question.jsonl --output question.jsonl

A partial download stays beside the output as NAME.part, and the next call resumes it. Nothing takes
the output's name before its sha256 is right. Exit status: 0 there and verified, 2 not.
"""

import argparse
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
GITHUB = "https://raw.githubusercontent.com"
SPEC_BENCH_COMMIT = "5544fd7a98df8aaf0662381f0c96e8696207e93d"
TIMEOUT_S = 30  # without a byte
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class QuestionSet:
    """Where a question set is published, and what its bytes must be."""

    url: str
    num_bytes: int
    sha256: str
    output: Path


SETS = {
    # 480 questions. The commit is one of the repository's own; that it holds these very bytes could
    # not be tried where this was written (no network), so the sha256 decides.
    "spec_bench": QuestionSet(
        url=f"{GITHUB}/hemingkx/Spec-Bench/{SPEC_BENCH_COMMIT}/data/spec_bench/question.jsonl",
        num_bytes=698768,
        sha256="4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
        output=FOLDER / "spec_bench" / "question.jsonl",
    ),
}


class DownloadError(Exception):
    """Why the file is not there; one line."""


def sha256_of(path):
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def open_url(url, start):
    """Request a URL from byte `start` on; returns (response, the byte that it starts at).

    A server that does not know ranges answers 200 with the whole file.
    """
    headers = {"User-Agent": "specgauge-download", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    response = urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
    )
    if response.status != 206:
        return response, 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        response.close()
        raise DownloadError(f"{url}: the server answered with another range than was asked for")
    return response, start


def fetch(url, part, num_bytes):
    """Bring `part` to `num_bytes` bytes from where it ends; a failure leaves it to be resumed."""
    start = part.stat().st_size if part.exists() else 0
    if start == num_bytes:
        return
    if start > num_bytes:
        part.unlink()
        start = 0
    try:
        response, offset = open_url(url, start)
        with response, open(part, "r+b" if offset else "wb") as file:
            file.seek(offset)
            copy(response, file, num_bytes - offset + 1)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url}: HTTP status {error.code} {error.reason}") from None
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise DownloadError(f"{url}: network failure: {reason}") from None
    size = part.stat().st_size
    if size < num_bytes:
        raise DownloadError(
            f"{url}: truncated: {size} of {num_bytes} bytes; call again to resume {part.name}"
        )
    if size > num_bytes:
        part.unlink()
        raise DownloadError(f"{url}: more than the expected {num_bytes} bytes: another file")


def copy(response, file, limit):
    """Write at most `limit` bytes of the response to the file, block by block."""
    try:
        while limit > 0 and (block := response.read(min(BLOCK_BYTES, limit))):
            file.write(block)
            limit -= len(block)
    except http.client.IncompleteRead as error:  # cut off; its size will say so
        file.write(error.partial)


def download(source, url, output):
    """Make `output` the verified file of a QuestionSet; returns a line that says what was done."""
    if output.is_dir():
        raise DownloadError(f"{output}: a folder; --output names a file")
    if output.exists():
        if sha256_of(output) == source.sha256:
            return f"{output}: already there, sha256 verified"
        raise DownloadError(
            f"{output}: a file with another sha256 is there; remove it or choose another --output"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    resumed = part.exists()
    fetch(url, part, source.num_bytes)
    found = sha256_of(part)
    if found != source.sha256 and resumed:  # the part may come from another file: once more, afresh
        part.unlink()
        fetch(url, part, source.num_bytes)
        found = sha256_of(part)
    if found != source.sha256:
        part.unlink()
        raise DownloadError(
            f"{url}: wrong sha256 {found}, expected {source.sha256}: not the file that is meant"
        )
    os.replace(part, output)
    return f"{output}: {source.num_bytes} bytes, sha256 verified"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(argv=None):
    """Download one question set; returns the exit status."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=sorted(SETS), help="question set to fetch")
    parser.add_argument("--output", type=Path, help="file to write (default: in this folder)")
    parser.add_argument("--url", help="a mirror to fetch it from")
    args = parser.parse_args(argv)
    source = SETS[args.name]
    url = args.url or source.url
    try:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(f"--url {url}: no http:// or https:// address")
        print(download(source, url, args.output or source.output))
    except DownloadError as error:
        print(f"download.py: error: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:  # disk, permission; a malformed address
        print(f"download.py: error: {args.output or source.output}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
