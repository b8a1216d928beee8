"""Build REST's datastore: tokenise a corpus and sort its suffixes, chunk by chunk.

Input:  .jsonl (a record a line) or .json (an array) of {"conversations": [{"from": ..., "value":
        text}, ...]}, {"text": text} or {"content": text}; or any other file, or a folder of files
Run:    python -m model.rest.build_datastore --model-path lmsys/vicuna-7b-v1.3
        --input sharegpt.jsonl --output datastore_chat
A build that was interrupted goes on with its next chunk when the same command is given again.
Memory: 10 bytes a token of a chunk (20 for vocabularies from 65536), and about 400 MB.
"""

import argparse
import os
import sys
from pathlib import Path

from model.common.args import Parser, at_least
from model.common.errors import BadInput, ends_in_one_line
from model.common.records.lock import written_alone

SHOWN_BAD = 10
BATCH = 1 << 20  # characters tokenised at a time


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="build_datastore",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model-path",
        required=True,
        help="the target, whose tokenizer is used: directory or hub id",
    )
    parser.add_argument("--input", required=True, help="corpus: a file or a folder")
    parser.add_argument("--output", required=True, help="directory of the datastore")
    parser.add_argument(
        "--extensions", default="", help="of a folder, only these files: .py,.md (default: all)"
    )
    parser.add_argument(
        "--chunk-tokens",
        type=at_least(16),
        default=1 << 26,
        help="tokens sorted at a time; more need more memory, fewer make lookups slower",
    )
    parser.add_argument(
        "--separators",
        choices=("on", "off"),
        default="on",
        help="on: no match or draft runs from a document into the next; off: as published",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another datastore")
    return parser


def batches(pieces):
    """Pieces in lists of about BATCH characters."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenised(tokenizer, pieces, skip: int, update=lambda: None):
    """(ids, last) of the pieces from number `skip` on; special tokens at documents' begin."""
    from itertools import islice

    for batch in batches(islice(pieces, skip, None)):
        ids = [None] * len(batch)
        for special in (True, False):
            places = [i for i, (_, first, _) in enumerate(batch) if first == special]
            if places:
                texts = [batch[i][0] for i in places]
                found = tokenizer(
                    texts,
                    add_special_tokens=special,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                    verbose=False,
                ).input_ids
                for i, piece_ids in zip(places, found):
                    ids[i] = piece_ids
        yield from ((piece_ids, last) for piece_ids, (_, _, last) in zip(ids, batch))
        update()


def build(args, say) -> dict:
    """Build or finish the datastore; returns its manifest."""
    from tqdm import tqdm

    from model.common.prompts.prompter import load_tokenizer
    from model.common.target.loading import check_model_path
    from model.rest.corpus import Corpus
    from model.rest.writer import Writer, settings_of

    extensions = tuple(filter(None, (part.strip() for part in args.extensions.split(","))))
    corpus = Corpus(args.input, extensions, say)
    check_model_path(args.model_path)
    tokenizer = load_tokenizer(args.model_path)
    name = os.path.basename(args.model_path.rstrip("/"))
    separators = args.separators == "on"
    settings = settings_of(tokenizer, name, corpus.describe(), args.chunk_tokens, separators)
    writer = Writer(args.output, settings, args.overwrite)
    if writer.manifest:
        return writer.manifest
    with tqdm(total=settings["source"]["bytes"], unit="B", unit_scale=True, disable=None) as bar:

        def update():
            bar.update(corpus.done_bytes - bar.n)

        for ids, last in tokenised(tokenizer, corpus.pieces(), writer.num_pieces, update):
            writer.add(ids, last)
    return writer.finish(corpus.num_bad)


def main(argv=None) -> None:
    """Exit with 0, or 2 on bad input, or 130 when interrupted."""
    parser = make_parser()
    args = parser.parse_args(argv)
    bad = []

    def say(line):
        bad.append(line)
        if len(bad) <= SHOWN_BAD:
            print(f"{parser.prog}: {line}", file=sys.stderr)

    with ends_in_one_line(parser.prog), written_alone(Path(args.output)):
        try:
            manifest = build(args, say)
        except OSError as error:
            raise BadInput(f"{error.filename or args.output}: {error.strerror}") from error
    if len(bad) > SHOWN_BAD:
        print(f"{parser.prog}: {len(bad) - SHOWN_BAD} more were left out", file=sys.stderr)
    print(
        f"{args.output}: {manifest['num_tokens']} tokens of {manifest['num_documents']} documents "
        f"in {len(manifest['chunks'])} chunks, {manifest['build_s']:.1f} s; "
        f"{manifest['num_bad']} bad records left out"
    )


if __name__ == "__main__":
    main()
