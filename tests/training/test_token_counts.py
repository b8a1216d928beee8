"""Token counts: of conversations, of recorded ids and of answer files; what cannot be counted."""

import json
from collections import Counter

import pytest
from harness_runs import answer, refusal, write
from safetensors import safe_open

from model.common.heads.vocabulary import FILE, read_counts
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.training.token_counts import main


def counted(model, data, out):
    """{id: count} of a run of the command."""
    main(["--model-path", model, "--data", str(data), "--output", str(out)])
    counts = read_counts(str(out), 97 * 97).tolist()
    return {token: count for token, count in enumerate(counts) if count}


def said(text, **more):
    """A conversation of one answer."""
    messages = [{"from": "human", "value": "Well?"}, {"from": "gpt", "value": text, **more}]
    return {"conversations": messages}


def test_an_answer_file(model_dir, question_file, tmp_path, capsys):
    """Its own ids, ends included; a failed question counts nothing."""
    file = tmp_path / "a.jsonl"
    records = answer("vanilla", model_dir, question_file, file, "--temperature", 1)
    failed = {"question_id": 99, "category": "qa", "choices": [], "error": "no"}
    write(file, [*records, failed])
    ids = [i for r in records for c in r["choices"] for turn in c["output_ids"] for i in turn]
    assert counted(model_dir, file, tmp_path / FILE) == Counter(ids)
    with safe_open(tmp_path / FILE, "pt") as opened:
        assert opened.metadata() == {"source": "a.jsonl", "tokens": str(len(ids))}
    assert f"{len(set(ids))} of " in capsys.readouterr().out


def test_conversations(model_dir, tmp_path):
    """A text's ids and its end, as trainers read them; recorded ids as they are."""
    tokenizer = load_tokenizer(model_dir)
    text = tokenizer("abc cab", add_special_tokens=False).input_ids
    own = [tokenizer.eos_token_id]
    length = len(Prompter(tokenizer).render(["Well?"], []))
    recorded = tokenizer("bb", add_special_tokens=False).input_ids
    records = [said("abc cab"), said("bb", token_ids=recorded, prompt_tokens=length)]
    expected = Counter(text + own + recorded)
    for name in ("c.jsonl", "c.json"):
        path = tmp_path / name
        whole = json.dumps(records)
        path.write_text(whole if name == "c.json" else "\n".join(map(json.dumps, records)))
        assert counted(model_dir, path, tmp_path / "out" / FILE) == expected


def test_what_cannot_be_counted_is_left_out(model_dir, tmp_path, capsys):
    records = [{"text": "no conversation"}, said("ab"), {"choices": [{"output_ids": [[10**6]]}]}]
    file = write(tmp_path / "mixed.jsonl", [*records, {"choices": [{}]}])
    assert sum(counted(model_dir, file, tmp_path / FILE).values()) == 3
    out = capsys.readouterr().out
    for words in ("mixed.jsonl:1", "mixed.jsonl:3: an id is not from 0", "mixed.jsonl:4"):
        assert words in out


@pytest.mark.parametrize("content", ["", "{}\n", None])
def test_nothing_to_count(model_dir, tmp_path, capfd, content):
    file = tmp_path / "empty.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["--model-path", model_dir, "--data", str(file), "--output", str(tmp_path / FILE)])
    assert "empty.jsonl" in refusal(capfd, ended.value.code)
    assert not (tmp_path / FILE).exists()
