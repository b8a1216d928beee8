"""Files by HTTP: fetched in pieces, resumed, and named only once their bytes are the right ones."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT_S = 30  # without a byte
BLOCK_BYTES = 1 << 16


class DownloadError(Exception):
    """Why something is not there; one line."""


@dataclass(frozen=True)
class Published:
    """What the bytes of a published file must be."""

    num_bytes: int
    sha256: str


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_there(path: Path, wanted: Published) -> bool:
    """Whether a path is that very file; its size is compared first."""
    return (
        path.is_file()
        and path.stat().st_size == wanted.num_bytes
        and sha256_of(path) == wanted.sha256
    )


def check_address(flag: str, url: str) -> None:
    """Refuse what is no address of the web."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{flag} {url}: no http:// or https:// address")


def open_url(url: str, start: int):
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


def fetch(url: str, part: Path, num_bytes: int) -> None:
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


def copy(response, file, limit: int) -> None:
    """Write at most `limit` bytes of the response to the file, block by block."""
    try:
        while limit > 0 and (block := response.read(min(BLOCK_BYTES, limit))):
            file.write(block)
            limit -= len(block)
    except http.client.IncompleteRead as error:  # cut off; its size will say so
        file.write(error.partial)


def download(url: str, wanted: Published, output: Path) -> bool:
    """Make `output` the verified file; returns whether anything had to be fetched."""
    if output.is_dir():
        raise DownloadError(f"{output}: a folder; --output names a file")
    if output.exists():
        if is_there(output, wanted):
            return False
        raise DownloadError(
            f"{output}: a file with another sha256 is there; remove it or choose another --output"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    resumed = part.exists()
    fetch(url, part, wanted.num_bytes)
    found = sha256_of(part)
    if found != wanted.sha256 and resumed:  # the part may come from another file: once more, afresh
        part.unlink()
        fetch(url, part, wanted.num_bytes)
        found = sha256_of(part)
    if found != wanted.sha256:
        part.unlink()
        raise DownloadError(
            f"{url}: wrong sha256 {found}, expected {wanted.sha256}: not the file that is meant"
        )
    os.replace(part, output)
    return True
