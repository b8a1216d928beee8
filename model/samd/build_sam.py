"""Build SAM-Decoding's static automaton from a corpus.

Source: Hu et al., SAM Decoding, arXiv 2411.10666
Run:    python -m model.samd.build_sam --model-path TOKENIZER_DIR --input corpus.jsonl --output DIR

A line of the corpus is a document: {"text": ...}, or a ShareGPT conversation {"conversations":
[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}, which is rendered as the
target's prompts are. Answers of the target itself match best. The published corpus also holds a
document of one token for every id; ours does not, so that a token which never occurs matches
nothing. A million tokens take about 5 s, three quarters of a GB while building and 50 MB on disk.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from model.common.args import Parser
from model.common.errors import BadInput, ends_in_one_line, parse_json
from model.common.records.lock import written_alone

LIMIT = 2**31 // 3  # tokens: an automaton has fewer than 3 edges a token


def parse(argv=None):
    """The command line."""
    parser = Parser(prog="build_sam", description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", required=True, help="tokenizer: model directory or hub id")
    parser.add_argument("--input", required=True, help="corpus: a jsonl file")
    parser.add_argument("--output", required=True, help="directory for the automaton")
    parser.add_argument("--template", help="FastChat template, or plain (default: the tokenizer's)")
    return parser.parse_args(argv)


def documents(path: str, prompter):
    """Token ids of every line of a corpus."""
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _document(line, f"--input {path}:{number}", prompter)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--input {path}: {error}") from error


def _document(line: str, place: str, prompter) -> list[int]:
    """One line's ids: the text's, or the prompt's of the last turn and its answer's."""
    try:
        entry = parse_json(line)
        if "text" in entry:
            return prompter.tokenizer(entry["text"]).input_ids
        said = [(message["from"], message["value"]) for message in entry["conversations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{place}: neither text nor conversations: {error!r}") from error
    turns = [value for who, value in said if who in ("human", "user")]
    answers = [value for who, value in said if who in ("gpt", "assistant")]
    if not turns or len(turns) != len(answers):
        raise BadInput(f"{place}: {len(turns)} human and {len(answers)} gpt messages")
    ids = prompter.render(turns, answers[:-1])
    return ids + prompter.tokenizer(answers[-1], add_special_tokens=False).input_ids


def build(documents, separator: int) -> dict:
    """The arrays of static.py over documents, each ended by the separator."""
    from model.samd.automaton import SuffixAutomaton

    automaton = SuffixAutomaton()
    for ids in documents:
        automaton.extend(ids if ids[-1:] == [separator] else [*ids, separator])
        if len(automaton.text) > LIMIT:
            raise BadInput(f"--input: more than {LIMIT} tokens")
    return flatten(automaton)


def flatten(automaton) -> dict:
    """An automaton's states as the arrays of static.py."""
    import numpy as np

    from model.samd.static import HEAVY

    names = ("text", "length", "link", "first")
    arrays = {name: np.array(getattr(automaton, name), np.int32) for name in names}
    count = arrays["count"] = count_ends(arrays)
    degree = [len(edges) for edges in automaton.next]
    arrays["offsets"] = np.concatenate([[0], np.cumsum(degree)]).astype(np.int32)
    total = sum(degree)
    tokens = np.fromiter((t for edges in automaton.next for t in edges), np.int32, total)
    states = np.fromiter((s for edges in automaton.next for s in edges.values()), np.int32, total)
    source = np.repeat(np.arange(len(degree), dtype=np.int32), degree)
    order = np.lexsort((tokens, -count[states], source))
    place = np.arange(total) - arrays["offsets"][source]  # rank by count within the state
    light = np.where(place < HEAVY, place - HEAVY, tokens[order])  # the others: by token
    order = order[np.lexsort((light, source))]
    arrays["edge_token"], arrays["edge_state"] = tokens[order], states[order]
    return arrays


def count_ends(arrays: dict):
    """How often each state's substrings occur; of the root 0. One pass from long to short.

    A state whose longest substring is a prefix of the text ends there; clones get theirs from the
    states that link to them.
    """
    import numpy as np

    length, link = arrays["length"], arrays["link"].tolist()
    count = (length == arrays["first"]).astype(np.int32).tolist()
    for state in np.argsort(-length, kind="stable").tolist():
        if link[state] > 0:
            count[link[state]] += count[state]
    count[0] = 0
    return np.array(count, np.int32)


def save(folder: Path, arrays: dict, manifest: dict) -> None:
    """Write the arrays, and the manifest last, so that a killed build is no automaton."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    manifest["sizes"] = {name: len(array) for name, array in arrays.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def run(args) -> None:
    """Corpus to directory."""
    import hashlib

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.records.writer import sha256_file
    from model.samd.static import VERSION, tokenizer_hash

    tokenizer = load_tokenizer(args.model_path)
    if tokenizer.eos_token_id is None:
        raise BadInput(f"--model-path {args.model_path}: the tokenizer has no end-of-text token")
    begin = time.perf_counter()
    prompter = Prompter(tokenizer, args.template)
    arrays = build(documents(args.input, prompter), tokenizer.eos_token_id)
    if not len(arrays["text"]):
        raise BadInput(f"--input {args.input}: no document")
    manifest = {
        "version": VERSION,
        "tokenizer": Path(args.model_path.rstrip("/")).name,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "separator": tokenizer.eos_token_id,
        "template": prompter.name,
        "corpus": Path(args.input).name,
        "corpus_sha256": sha256_file(Path(args.input)),
        "text_sha256": hashlib.sha256(arrays["text"]).hexdigest(),
        "build_s": round(time.perf_counter() - begin, 3),
    }
    save(Path(args.output), arrays, manifest)
    size = sum(array.nbytes for array in arrays.values())
    print(
        f"{args.output}: {len(arrays['text'])} tokens, {len(arrays['length'])} states, "
        f"{size / 1e6:.1f} MB, {manifest['build_s']} s"
    )


def main(argv=None) -> None:
    """Build, or exit with 2 and one line."""
    args = parse(argv)
    with ends_in_one_line("build_sam", "starts anew"), written_alone(Path(args.output)):
        run(args)


if __name__ == "__main__":
    main()
