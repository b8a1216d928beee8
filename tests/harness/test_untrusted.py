"""Files of strangers: nothing in them runs, nothing leaves its folder, nothing acts in a terminal.

Pickles and a model's own code: test_bad_models.py; the page: test_report.py, test_page_browser.py.
"""

import json
import shutil
import zipfile

import pytest
import torch
from answer_samples import run_tool
from eagle_dirs import eagle_dir
from harness_runs import all_methods, answer, messages, read, read_meta, refused, run, where, write
from safetensors.torch import load_file

from model.common.visible import Visible, visible

EVIL = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202egnp\r"
ACTS = ("\x1b", "\x07", "\x9b", "\u202e", "\r")
TOOLS = {
    "speed": ["--file-path", "pld", "--base-path", "vanilla", "--profile", "--detail"],
    "speed markdown": ["--file-path", "pld", "--base-path", "vanilla", "--format", "markdown"],
    "speed csv": ["--file-path", "pld", "--base-path", "vanilla", "--format", "csv"],
    "equal": ["vanilla", "pld"],
    "audit_answers": ["--file-path", "pld", "--base-path", "vanilla"],
    "serving": ["pld", "--base-path", "vanilla"],
    "show": ["pld", "--question-id", "11"],
}


@pytest.fixture(scope="module")
def evil(tmp_path_factory, model_dir, draft_dir, question_file):
    """{method: an answer file} whose every text acts in a terminal."""
    folder = tmp_path_factory.mktemp("evil")
    found = all_methods(folder, model_dir, draft_dir, question_file)
    for path in found.values():
        meta = read_meta(path)
        meta["model_id"] += EVIL
        meta["environment"] |= {"device": EVIL, "torch": EVIL}
        path.with_suffix(".meta.json").write_text(json.dumps(meta))
        records = [record | {"category": f"qa{EVIL}"} for record in read(path)]
        for record in records:
            record["model_id"] += EVIL
            record["choices"][0]["turns"] = [EVIL for _ in record["choices"][0]["turns"]]
        records[-1] |= {"error": EVIL, "choices": []}
        write(path, records)
    return found


@pytest.mark.parametrize("name", TOOLS)
def test_what_tools_print_of_files_does_not_act(evil, name):
    flags = [evil.get(flag, flag) for flag in TOOLS[name]]
    done = run_tool(f"evaluation/{name.split()[0]}.py", *flags)
    said = done.stdout + done.stderr
    assert "\\x1b[31mred" in said and not any(character in said for character in ACTS)


def test_a_question_that_fails_is_named_without_acting(capfd, model_dir, tmp_path):
    """Its id and its error are the question file's."""
    lines = [{"question_id": f"a{EVIL}", "category": EVIL, "turns": ["x" * 600]}]
    file = write(
        tmp_path / "q.jsonl", [*lines, {"question_id": 1, "category": "b", "turns": ["x"]}]
    )
    answer("vanilla", model_dir, file, tmp_path / "a.jsonl", code=1)
    said = "\n".join(messages(capfd))
    assert "a\\x1b]0;title" in said and not any(character in said for character in ACTS)
    twice = write(tmp_path / "twice.jsonl", lines * 2)
    flags = ["--model-path", model_dir, "--question-file", twice, "--answer-file", tmp_path / "b"]
    assert run("vanilla", *flags) == 2
    said = "\n".join(messages(capfd))
    assert "\\x1b]0;title" in said and not any(character in said for character in ACTS)


def test_a_stream_that_shows_what_acts(tmp_path):
    with open(tmp_path / "text", "w") as out:
        stream = Visible(out, kept="\n\r")
        print("a\x1b[1mb\tc\rd", file=stream, flush=True)
        assert not stream.isatty() and stream.fileno() == out.fileno()
    assert (tmp_path / "text").read_bytes() == b"a\\x1b[1mb\\tc\rd\n"
    assert visible("caf\u00e9 \u4f60") == "caf\u00e9 \u4f60"


@pytest.mark.parametrize("place", ["/etc/hostname", "../secret.safetensors", "a/../../b", 3])
@pytest.mark.parametrize("which", ["target", "head"])
def test_shards_lie_in_their_folder(capfd, paths, tmp_path, which, place):
    """An index may name no file elsewhere, be it there or not."""
    folder = tmp_path / which
    if which == "target":
        shutil.copytree(paths["model"], folder)
        given = {"method": "vanilla"}
    else:
        eagle_dir(folder, paths["model"], file="model.safetensors")
        given = {"method": "eagle2"}
    weights = folder / "model.safetensors"
    shutil.copy(weights, tmp_path / "secret.safetensors")
    names = load_file(weights)
    weights.unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    flag = "--model-path" if which == "target" else "--eagle-path"
    line = refused(capfd, paths, flag, folder, **given)
    assert str(folder) in line
    assert place == 3 or (str(place) in line and "outside its folder" in line)


def test_a_pickle_that_grows(capfd, paths, tmp_path):
    """A compressed archive is no checkpoint of PyTorch's: it is not unpacked into memory."""
    folder = tmp_path / "head"
    eagle_dir(folder, paths["model"], file="pytorch_model.bin")
    weights = folder / "pytorch_model.bin"
    torch.save({"a": torch.zeros(4)}, weights)
    with zipfile.ZipFile(weights) as old:
        held = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in held.items():
            bomb.writestr(name, bytes(1 << 30) if name.endswith("data/0") else content)
    assert weights.stat().st_size < 4 << 20
    line = refused(capfd, paths, "--eagle-path", folder, method="eagle2")
    assert str(weights) in line


TEMPLATES = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "a long loop": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "a change": "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_reach_for_nothing(capfd, paths, tmp_path, monkeypatch, name):
    """transformers' sandbox refuses it, and the question says so."""
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(paths["model"], tmp_path / "model")
    for path in model.glob("chat_template*"):
        path.unlink()
    known = json.loads((model / "tokenizer_config.json").read_text())
    known["chat_template"] = TEMPLATES[name]
    (model / "tokenizer_config.json").write_text(json.dumps(known))
    code = run("pld", *where(paths), "--model-path", model)
    said = " ".join(messages(capfd))
    assert code in (1, 2) and "Traceback" not in said
    assert any(word in said for word in ("unsafe", "Range too big", "immutable", "undefined")), said
    assert not (tmp_path / "MARK").exists()


DEEP = '{"a":' * 5000 + "1" + "}" * 5000  # more than json's parser has room for


def test_json_nested_too_deeply_is_bad_input(capfd, paths, tmp_path):
    """Wherever a command reads it: refused by the file's name, never a RecursionError."""
    (tmp_path / "deep.json").write_text(DEEP)
    head = eagle_dir(tmp_path / "head", paths["model"])
    (tmp_path / "head" / "config.json").write_text(DEEP)
    answers = answer("pld", paths["model"], paths["questions"], tmp_path / "b.jsonl")
    (tmp_path / "b.meta.json").write_text(DEEP)
    messages(capfd)
    deep = tmp_path / "deep.json"
    for method, flags, name in (
        ("recycling", ["--tree", deep], deep),
        ("pld", ["--history", deep], deep),
        ("pld", ["--question-file", deep], deep),
        ("eagle2", ["--eagle-path", head], head),
        ("pld", ["--answer-file", tmp_path / "b.jsonl"], "b.meta.json"),
        ("pld", ["--template-args", DEEP], "--template-args"),
    ):
        assert str(name) in refused(capfd, paths, *flags, method=method)
    assert len(answers) == 6


def test_answers_of_half_a_surrogate_pair(paths, tmp_path):
    """No tokenizer makes one; a file that holds one is resumed, and keeps it as an escape."""
    out = tmp_path / "b.jsonl"
    records = answer("pld", paths["model"], paths["questions"], out)
    records[0]["choices"][0]["turns"][0] = "\ud800"
    write(out, records[:3])
    after = answer("pld", paths["model"], paths["questions"], out)
    assert after[0] == records[0] and len(after) == 6 and b"\\ud800" in out.read_bytes()


@pytest.mark.parametrize("value", [["1-8"], 3, "all", {}, "1-8/9"])
def test_a_meta_of_other_products_is_named(capfd, paths, tmp_path, value):
    out = tmp_path / "b.jsonl"
    answer("pld", paths["model"], paths["questions"], out, "--question-end", 2)
    meta = read_meta(out)
    meta["environment"]["turned_rows"] = value
    out.with_suffix(".meta.json").write_text(json.dumps(meta))
    messages(capfd)
    line = refused(capfd, paths, "--answer-file", out, "--max-new-tokens", 24)
    assert "b.meta.json: turned_rows" in line


@pytest.mark.parametrize("eos", [{}, [{}], "x", [1, None, "2"]])
def test_ends_that_are_no_ids(capfd, paths, tmp_path, eos):
    model = shutil.copytree(paths["model"], tmp_path / "model")
    known = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(known | {"eos_token_id": eos}))
    assert "eos_token_id" in refused(capfd, paths, "--model-path", model)


def test_a_system_prompt_that_is_no_text(capfd, paths, tmp_path):
    """Of a meta, which the tools read, too."""
    out = tmp_path / "b.jsonl"
    answer("pld", paths["model"], paths["questions"], out, "--temperature", 1)
    meta = read_meta(out)
    for part, value in (("run_s", 3), ("environment", []), ("method_args", "x")):
        out.with_suffix(".meta.json").write_text(json.dumps(meta | {part: value}))
        done = run_tool("evaluation/audit_sampling.py", out)
        assert done.returncode == 2 and f"{part} is no dict" in done.stderr
    meta["arguments"]["system_prompt"] = ["x"]
    out.with_suffix(".meta.json").write_text(json.dumps(meta))
    done = run_tool("evaluation/audit_sampling.py", out)
    assert done.returncode == 2 and "system_prompt is no str" in done.stderr
    meta["arguments"]["system_prompt"] = None
    out.with_suffix(".meta.json").write_text(json.dumps(meta))
    records = read(out)
    records[1]["model_id"] = ["x"]
    write(out, records)
    done = run_tool("evaluation/audit_sampling.py", out)
    assert done.returncode == 2 and "model_id is no text" in done.stderr
