"""What the tools of this folder share: one-line errors, exit status 2, a lazy tokenizer."""

import argparse
import os
import sys
from pathlib import Path

from evaluation.answers.meta import AnswerError


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


def warn(message):
    """One line on stderr; the result still stands."""
    print(f"warning: {message}", file=sys.stderr)


def field_list(text):
    """Split 'FIELD[,FIELD]' into names."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"an empty field name in {text!r}")
    return names


def run(main):
    """Call `main()`, turn what it refuses into one line on stderr, and exit with its status."""
    try:
        status = main()
        sys.stdout.flush()
    except AnswerError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:  # the reader of our stdout has left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def reason_of(done):
    """Why a method's command ended badly: the first question that failed, else its last line."""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
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
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise AnswerError(f"--tokenizer-path {path}: no tokenizer loads: {lines[0]}") from None
