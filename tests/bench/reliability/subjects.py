"""What is given files with something wrong in them: methods, loaders, and tools, on tiny models."""

import contextlib
import importlib
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mutations
from child import ended

COMMON = ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--warmup", "0"]
COMMON += ["--max-new-tokens", "6"]
TOOLS = {  # what each is called with, in a folder of answers
    "speed": ["--file-path", "pld.jsonl", "--base-path", "vanilla.jsonl", "--profile"],
    "equal": ["vanilla.jsonl", "pld.jsonl"],
    "audit_answers": ["--file-path", "pld.jsonl", "--base-path", "vanilla.jsonl"],
    "audit_sampling": ["sampled.jsonl"],
    "serving": ["load.jsonl"],
    "show": ["pld.jsonl", "--question-id", "80"],
    "report": ["pld.jsonl", "vanilla.jsonl", "--base-path", "vanilla.jsonl"],
    "merge": ["--output", "merged.jsonl", "part.jsonl", "last.jsonl"],
}
READ = {"audit_sampling": "sampled", "serving": "load", "merge": "part"}  # others: pld


@dataclass
class Subject:
    """A call that reads a file which is wrong.

    folder  what it finds where it is called, copied anew every time
    file    the one of it that is edited, by `edits`: content -> strategy of contents
    call    what is called there
    """

    folder: Path
    file: str
    edits: Callable
    call: Callable[[], None]

    def strategy(self):
        """Of contents of the file."""
        return self.edits((self.folder / self.file).read_bytes())


def method(name: str, *flags):
    """A method's script with these flags."""
    from model.common.eval import main

    def call():
        script = importlib.import_module(f"model.{name}.inference_{name}")
        engine = getattr(script, "engine", None)
        argv = [*map(str, flags), *COMMON]
        main(name, script.__doc__, script.add_args, script.build, engine, argv)

    return call


def tool(name: str, *flags):
    """A tool of evaluation/ with these flags."""

    def call():
        from evaluation.cli import run

        module = importlib.import_module(f"evaluation.{name}")
        sys.argv = [f"{name}.py", *flags]
        run(module.main)

    return call


def module(name: str, *flags):
    """A module's command with these flags."""

    def call():
        sys.argv = [name, *map(str, flags)]
        runpy.run_module(name, run_name="__main__")

    return call


def preload() -> None:
    """Import what calls import, once, so that a child finds it there."""
    for name in ("vanilla", "pld", "recycling", "eagle2", "sps", "rest", "samd"):
        importlib.import_module(f"model.{name}.inference_{name}")
    for name in TOOLS:
        importlib.import_module(f"evaluation.{name}")
    for name in ("transformers", "torch", "gguf", "model.common.eval", "model.rest.drafter"):
        importlib.import_module(name)


def make_folders(home: Path) -> None:
    """Tiny models, heads, questions, answers, indices: everything that is to be spoilt."""
    from conftest import save_model
    from eagle_dirs import eagle_dir
    from harness_runs import write

    home.mkdir(parents=True)
    target = Path(save_model(home / "target"))
    save_model(home / "draft", seed=1, num_hidden_layers=1)
    eagle_dir(home / "eagle", str(target), file="model.safetensors")
    eagle_dir(home / "pickled", str(target))
    _write_gguf(home / "gguf")
    turns = [["What is it?", "And that?"], ["abcabcabc"], ["x"], ["One two three."]]
    categories = ["writing", "qa", "math", "rag"]
    rows = [
        {"question_id": 80 + i, "category": category, "turns": said}
        for i, (category, said) in enumerate(zip(categories, turns))
    ]
    answers = home / "answers"
    answers.mkdir()
    write(answers / "question.jsonl", rows)
    said = [{"from": "human", "value": "abc"}, {"from": "gpt", "value": "abcd"}]
    chats = [{"id": str(i), "conversations": said * 2} for i in range(4)]
    (answers / "chats.json").write_text(json.dumps(chats))
    write(answers / "corpus.jsonl", chats)
    (answers / "trace.jsonl").write_text("0.0\n0.01\n0.02\n")
    (answers / "tree.json").write_text(json.dumps([[0], [1], [0, 0], [0, 1], [0, 0, 0]]))
    _fill(answers, target)
    _train(home / "training")


def _train(folder: Path) -> None:
    """A training of Medusa's heads that was interrupted behind its first checkpoint."""
    from trainers import new_files, trained

    folder.mkdir()
    new_files(folder)
    files = {"target": "target", "chats": "chats.jsonl"}

    def train():
        with contextlib.suppress(KeyboardInterrupt):
            trained("medusa", files, "out", stop_at=16)

    _must(train, folder, "medusa.train")


def _write_gguf(folder: Path) -> None:
    from conftest import make_model
    from gguf_models import vocabulary, write_gguf

    folder.mkdir()
    tokens = vocabulary()
    write_gguf(folder / "model.gguf", make_model(vocab_size=len(tokens)), tokens)


def _fill(answers: Path, target: Path) -> None:
    """Answer files, and indices of list methods."""
    asked = ["--model-path", target, "--question-file", "question.jsonl"]
    runs = {
        "vanilla": ["vanilla", *asked],
        "pld": ["pld", *asked, "--paired", 2],
        "part": ["pld", *asked, "--question-begin", 0, "--question-end", 2],
        "last": ["pld", *asked, "--question-begin", 2, "--question-end", 4],
        "sampled": ["pld", *asked, "--temperature", 1],
        "load": ["pld", *asked, "--rate", 50, "--num-prompts", 4],
    }
    for name, (own, *flags) in runs.items():
        _must(method(own, *flags, "--answer-file", f"{name}.jsonl"), answers, name)
    for name, module in (("rest", "build_datastore"), ("samd", "build_sam")):
        built = importlib.import_module(f"model.{name}.{module}")
        flags = ["--model-path", str(target), "--input", "corpus.jsonl", "--output", name]
        _must(lambda built=built, flags=flags: built.main(flags), answers, name)


def _must(call, folder: Path, name: str) -> None:
    done = ended(call, folder, 120)
    if done.status:
        sys.exit(f"fuzz_files.py: {name}: {done.stderr}")
    for stream in ("stdout", "stderr"):
        (folder / stream).unlink()


def all_subjects(home: Path) -> dict[str, Subject]:
    """By name."""
    answers, target = home / "answers", home / "target"
    json_file, jsonl = mutations.json_file, mutations.jsonl
    safetensors, raw = mutations.safetensors, mutations.byte_edits
    asked = ["--model-path", target, "--question-file", "question.jsonl"]
    out = ["--answer-file", "new.jsonl"]
    pld = method("pld", *asked, "--paired", 2, "--answer-file", "pld.jsonl")
    new = method("pld", *asked, *out, "--history", "vanilla.jsonl")
    tree = method("recycling", *asked, *out, "--tree", "tree.json")
    found = {
        "questions": Subject(answers, "question.jsonl", jsonl, method("vanilla", *asked, *out)),
        "resumed answers": Subject(answers, "pld.jsonl", jsonl, pld),
        "resumed meta": Subject(answers, "pld.meta.json", json_file, pld),
        "history": Subject(answers, "vanilla.jsonl", jsonl, new),
        "tree": Subject(answers, "tree.json", json_file, tree),
    }
    load = ["--model-path", target, *out]
    chats = ["--question-file", "chats.json", "--num-prompts", 3]
    found["chats"] = Subject(answers, "chats.json", json_file, method("vanilla", *load, *chats))
    trace = ["--question-file", "question.jsonl", "--trace", "trace.jsonl"]
    found["trace"] = Subject(answers, "trace.jsonl", raw, method("vanilla", *load, *trace))
    rest = method("rest", *asked, *out, "--datastore-path", "rest")
    samd = method("samd", *asked, *out, "--static-path", "samd", "--auxiliary", "none")
    found["rest manifest"] = Subject(answers, "rest/manifest.json", json_file, rest)
    found["samd manifest"] = Subject(answers, "samd/manifest.json", json_file, samd)
    for array in sorted((answers / "samd").glob("*.npy"))[:3]:
        found[f"samd {array.stem}"] = Subject(answers, f"samd/{array.name}", raw, samd)
    for name, flags in TOOLS.items():
        read = READ.get(name, "pld")
        call = tool(name, *flags)
        found[f"{name} answers"] = Subject(answers, f"{read}.jsonl", jsonl, call)
        found[f"{name} meta"] = Subject(answers, f"{read}.meta.json", json_file, call)
    questions = ["--question-file", answers / "question.jsonl", *out]
    own = method("vanilla", "--model-path", ".", *questions)
    for file, edits in (
        ("config.json", json_file),
        ("generation_config.json", json_file),
        ("tokenizer.json", json_file),
        ("tokenizer_config.json", json_file),
        ("chat_template.jinja", raw),
        ("model.safetensors", safetensors),
    ):
        found[f"target {file}"] = Subject(target, file, edits, own)
    head = method("eagle2", "--model-path", target, *questions, "--eagle-path", ".", "--depth", 2)
    for file, edits in (("config.json", json_file), ("model.safetensors", safetensors)):
        found[f"head {file}"] = Subject(home / "eagle", file, edits, head)
    pickled = Subject(home / "pickled", "pytorch_model.bin", raw, head)
    found["head pytorch_model.bin"] = pickled
    training = home / "training"
    found["checkpoint"] = Subject(training, "out/checkpoint.pt", raw, module(*training_command()))
    draft = method("sps", "--model-path", target, *questions, "--drafter-path", ".")
    found["draft config.json"] = Subject(home / "draft", "config.json", json_file, draft)
    gguf = method("vanilla", "--model-path", "model.gguf", *questions)
    found["gguf"] = Subject(home / "gguf", "model.gguf", lambda b: raw(b, until=8192), gguf)
    return found


def training_command() -> list:
    """The one that was interrupted, in its folder."""
    from trainers import FLAGS, METHODS

    flags = {"model-path": "target", "data": "chats.jsonl", "output": "out"}
    flags |= FLAGS | METHODS["medusa"][0]
    return ["model.medusa.train", *(f"--{name}={value}" for name, value in flags.items())]


def fresh(subject: Subject, place: Path, content: bytes) -> None:
    """Its folder at `place`, with the edited file."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(subject.folder, place)
    (place / subject.file).write_bytes(content)
