"""What the tools of this folder share: --json, one-line errors, exit statuses, a lazy tokenizer."""

import argparse
import contextlib
import json
import math
import os
import re
import sys
import traceback
from pathlib import Path

from evaluation.answers.meta import AnswerError
from model.common.errors import CRASHED, disk_fault, first_line, parse_json
from model.common.visible import Visible

PROGRESS = re.compile(r"\d+ of \d+ questions, ")  # how a method's progress lines begin


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line on stderr, exit status 2."""

    def __init__(self, doc):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def add_json(self):
        """Declare --json; main() writes the report with write_json()."""
        self.add_argument(
            "--json",
            type=report_path,
            metavar="PATH",
            help="write the report there as one JSON document (-: to stdout, the text to stderr)",
        )

    def add_bootstrap(self):
        """Declare --resamples and --seed of a bootstrap; check_bootstrap() refuses bad ones."""
        self.add_argument("--resamples", type=int, default=10000, help="bootstrap resamples")
        self.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")

    def check_bootstrap(self, args):
        """Refuse numbers that make no sense."""
        if args.resamples < 1 or args.seed < 0:
            self.error("--resamples must be 1 or more and --seed 0 or more")


STDOUT = "-"  # as the PATH of --json


def report_path(text):
    """The PATH of --json; refuses one that cannot be written, or holds what is no report."""
    path = Path(text)
    if text == STDOUT:
        return text
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no file can be written there")
    if path.is_file() and path.stat().st_size and read_report(path) is None:
        raise argparse.ArgumentTypeError(f"{text}: a file that is no report is there")
    return path


def read_report(path):
    """The document that a tool's --json wrote, None where a file holds something else."""
    try:
        document = parse_json(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and "tool" in document else None


def finite(value):
    """A document of dicts and lists whose NaN and infinities are None."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_beside(path):
    """A context in which printed text leaves stdout to the JSON of `--json -`."""
    return contextlib.redirect_stdout(sys.stderr) if path == STDOUT else contextlib.nullcontext()


def write_json(path, document):
    """Write a report to the PATH of --json; None: nowhere. What is no finite number is null."""
    if path is None:
        return
    text = json.dumps(finite(document), allow_nan=False)
    if path == STDOUT:
        print(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise AnswerError(f"--json {path}: {error.strerror}") from None


def append_lines(path, lines):
    """Append text to the PATH of --details."""
    try:
        with open(path, "a", encoding="utf-8") as out:
            print(*lines, sep="\n", file=out)
    except OSError as error:
        raise AnswerError(f"--details {path}: {error.strerror}") from None


def write_object(path, document, marks):
    """Write a JSON object; a file that is there and has none of the keys `marks` stays."""
    try:
        if path.exists() and path.stat().st_size and not has_marks(path, marks):
            raise AnswerError(f"--as: {path}: a file that is no such result is there")
        path.write_text(json.dumps(finite(document), allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise AnswerError(f"--as: {path}: {error.strerror}") from None
    return path


def has_marks(path, marks):
    """Whether a file is a JSON object with one of the keys."""
    try:
        found = parse_json(path.read_bytes())
    except ValueError:
        return False
    return isinstance(found, dict) and not marks.isdisjoint(found)


def warn(message):
    """One line on stderr; the result still stands."""
    print(f"warning: {message}", file=sys.stderr)


def field_list(text):
    """Split 'FIELD[,FIELD]' into names."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"an empty field name in {text!r}")
    return names


def run(main, coloured=False):
    """Call `main()`, turn what it refuses into one line on stderr, and exit with its status.

    Control characters from files reach the terminal as escapes; of a tool whose stdout is
    `coloured`, it sees to that itself.
    """
    streams = sys.stdout, sys.stderr
    sys.stderr = Visible(sys.stderr, kept="\n\t\r")  # bars begin their line anew
    sys.stdout = sys.stdout if coloured else Visible(sys.stdout)
    try:
        status = main()
        sys.stdout.flush()
    except AnswerError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # the reader of our stdout has left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("model", "evaluation"):
            traceback.print_exc()
            status = CRASHED
        else:
            where = f"no package {error.name} in {sys.executable}; ./eval.sh --setup prepares one"
            print(f"{Path(sys.argv[0]).name}: error: {where}", file=sys.stderr)
            status = 2
    except Exception as error:
        fault, status = disk_fault(error), 2
        if fault is None:
            traceback.print_exc()
            status = CRASHED
        else:
            print(f"{Path(sys.argv[0]).name}: error: {fault}", file=sys.stderr)
    finally:
        sys.stdout, sys.stderr = streams
    sys.exit(status)


def reason_of(done):
    """Why a method's command ended badly: the first question that failed, else its last line."""
    lines = [line for line in done.stderr.strip().splitlines() if not PROGRESS.match(line)]
    lines = lines or [f"exit status {done.returncode}"]
    return next((line for line in lines if line.startswith("question ")), lines[-1])


class TokenCounter:
    """text -> number of input ids, special tokens included; the tokenizer is loaded when needed."""

    def __init__(self, path):
        self.path, self.tokenizer, self.counts = path, None, {}

    def __call__(self, text):
        self.tokenizer = self.tokenizer or load_tokenizer(self.path)
        if text not in self.counts:
            self.counts[text] = len(self.tokenizer(text).input_ids)
        return self.counts[text]


def load_tokenizer(path):
    """The Hugging Face tokenizer at `path` (a folder or hub name); imported when called."""
    if os.path.isabs(path) and not os.path.isdir(path):
        raise AnswerError(f"--tokenizer-path {path}: no such folder")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise AnswerError(f"--tokenizer-path needs the package transformers: {error}") from None
    try:
        options = {"local_files_only": os.path.isdir(path), "trust_remote_code": False}
        return AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # transformers raises many kinds here; all mean the same to a user
        reason = first_line(error)
        raise AnswerError(f"--tokenizer-path {path}: no tokenizer loads: {reason}") from None
