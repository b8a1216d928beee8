"""Training conversations: ids and masks against text marked by hand, bad records, batches."""

import json
import random
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer

from model.common.errors import BadInput
from model.common.prompts.prompter import Prompter
from model.common.prompts.templates import (
    Conversation,
    Rejected,
    TrainingData,
    batch_size,
    by_length,
    collate,
    encode,
    load_data,
    read_conversations,
)

ROOT = Path(__file__).resolve().parents[2]
TURNS, ANSWERS = ["Hi there", "Again?", "Once more"], ["Yes. No", "abc", "Bye!"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
)


def pieces(template, turns, answers):
    """[(text, is an answer's)] of a conversation, written out for each template."""
    out = []
    for i, (turn, answer) in enumerate(zip(turns, answers)):
        first, last = i == 0, i + 1 == len(answers)
        if template is None:
            out += [("<s>" if first else "", False), (f"user: {turn}\nassistant: ", False)]
            out += [(answer, True), ("</s>", True) if last else ("\n</s>", False)]
        elif template == "plain":
            out += [(f"{turn}\n", False), (answer, True), ("</s>", True) if last else ("\n", False)]
        else:
            out += [((SYSTEM if first else "") + f"USER: {turn} ASSISTANT:", False)]
            out += [(f" {answer}</s>", True)]
    return out


def reference(tokenizer, marked):
    """ids and mask, piece by piece: the tests' tokenizer has one token per byte."""
    ids, mask = [], []
    for text, is_answer in marked:
        new = tokenizer(text, add_special_tokens=False).input_ids
        ids, mask = ids + new, mask + [is_answer] * len(new)
    return ids, mask


def encoded(template, turns, answers, max_length=10_000, tokenizer=None):
    tokenizer = tokenizer or make_tokenizer()
    ends = frozenset({tokenizer.eos_token_id})
    conversation = Conversation("x:1", turns, answers)
    row = encode(Prompter(tokenizer, template), conversation, max_length, ends)
    return row.ids.tolist(), row.mask.tolist()


@pytest.mark.parametrize("template", [None, "vicuna_v1.1", "plain"])
@pytest.mark.parametrize("num_turns", [1, 2, 3])
def test_ids_and_masks_are_those_written_by_hand(template, num_turns):
    turns, answers = TURNS[:num_turns], ANSWERS[:num_turns]
    expected = reference(make_tokenizer(), pieces(template, turns, answers))
    assert encoded(template, turns, answers) == expected


@pytest.mark.parametrize("template", [None, "vicuna_v1.1", "plain"])
def test_rows_begin_with_the_prompt_of_inference(template):
    prompter = Prompter(make_tokenizer(), template)
    ids, mask = encoded(template, TURNS, ANSWERS)
    for i in range(3):
        prompt = prompter.render(TURNS, ANSWERS[:i])
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt)] and not mask[len(prompt) - 1]


@pytest.mark.parametrize("template", [None, "vicuna_v1.1", "plain"])
def test_max_length_cuts_rows(template):
    ids, mask = encoded(template, TURNS, ANSWERS)
    for length in range(2, len(ids) + 2):
        cut_ids, cut_mask = encoded(template, TURNS, ANSWERS, length)
        shorter = len(cut_ids) < min(length, len(ids))
        assert cut_ids == ids[: len(cut_ids)] and not shorter
        assert cut_mask == mask[: len(cut_mask)]


def test_the_mini_model_was_trained_on_the_same_rows():
    from transformers import AutoTokenizer

    from data.mini_bench.generate import conversations
    from data.mini_models import batches

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/mini_models/target")
    stream = conversations(None, 5, None)
    examples = [next(stream) for _ in range(40)]
    for example, (ids, weights) in zip(examples, batches.encode(tokenizer, examples, 0.0)):
        found = encoded(None, example.turns, example.answers, batches.MAX_LENGTH, tokenizer)
        assert found == (ids, [weight == 1.0 for weight in weights])


def test_a_turn_that_does_not_nest_is_cut_off():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}", "{{ m.content | upper if m.role == 'assistant' else m.content }}"
    )
    found = encoded(None, TURNS, ANSWERS, tokenizer=tokenizer)
    assert found == reference(tokenizer, pieces(None, TURNS[:1], ANSWERS[:1]))


def test_an_end_that_only_the_template_has_is_kept():
    tokenizer = make_tokenizer(["<end>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}\n", "{{ m.content }}{{ '<end>' if m.role == 'assistant' }}\n"
    )
    end = tokenizer.convert_tokens_to_ids("<end>")
    conversation = Conversation("x:1", TURNS, ANSWERS)
    row = encode(Prompter(tokenizer), conversation, 1000, frozenset({end, tokenizer.eos_token_id}))
    assert (row.ids[row.mask] == end).sum() == 3
    assert row.ids[-1] == end


def said(*messages):
    return {"conversations": [{"from": f, "value": v} for f, v in messages]}


GOOD = said(("human", "a"), ("gpt", " b "))
BAD = {
    "conversations": 7,
    "no list": {"x": 1},
    "speaker": said(("human", "a"), ("robot", "b")),
    "no text": said(("human", "a"), ("gpt", None)),
    "row": said(("human", "a"), ("human", "b"), ("gpt", "c")),
    "answer": said(("gpt", "b"), ("human", "a")),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_bad_records_are_named_and_counted(tmp_path, capsys, suffix):
    records = [GOOD, *BAD.values(), *[[]] * 5, said(("system", "s"), *[("user", "c")])]
    records.append(said(("system", "s"), ("gpt", "x"), ("user", "c"), ("assistant", "d")))
    records[-1]["conversations"].append({"from": "human", "value": "left without an answer"})
    lines = [json.dumps(record) for record in records]
    path = tmp_path / f"data{suffix}"
    path.write_text("[" + ",\n".join(lines) + "]" if suffix == ".json" else "\n".join(lines))
    rejected = Rejected()
    found = read_conversations(str(path), rejected)
    rejected.close(str(path), len(found))
    assert [(c.turns, c.answers) for c in found] == [(["a"], ["b"]), (["c"], ["d"])]
    assert [c.place for c in found] == [f"{path}:1", f"{path}:{len(records)}"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 11 and "12 records" in printed[-1]
    for number, (line, words) in enumerate(zip(printed, BAD), 2):
        assert line.startswith(f"left out: {path}:{number}: ") and words in line


def test_broken_json_is_a_bad_record(tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{broken\n\n" + json.dumps(GOOD))
    rejected = Rejected()
    assert [c.place[-2:] for c in read_conversations(str(path), rejected)] == [":1", ":4"]
    path = tmp_path / "data.json"
    path.write_text("[" + json.dumps(GOOD) + ",\n{broken")
    assert len(read_conversations(str(path), rejected)) == 1
    assert f"{path}:2: not JSON" in capsys.readouterr().out
    assert rejected.count == 2


def arguments(path, **changed):
    from types import SimpleNamespace

    values = {"data": str(path), "max_length": 64, "seed": 3, "batch_tokens": 100, "held_out": 0.1}
    return SimpleNamespace(**{**values, **changed})


def test_nothing_left_is_bad_input(tmp_path):
    prompter = Prompter(make_tokenizer())
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    for changed, words in [({"max_length": 3}, "data.jsonl:1: no answer within 3"),
                           ({}, "nothing to train on")]:  # fmt: skip
        with pytest.raises(BadInput, match=words):
            load_data(arguments(path, **changed), prompter, frozenset({1}))
    path.write_text("7\n")
    with pytest.raises(BadInput, match="data.jsonl:1: no list"):
        load_data(arguments(path), prompter, frozenset({1}))
    for name in ("", "missing"):
        path = tmp_path / name if name else path
        path.write_text("") if not name else None
        with pytest.raises(BadInput, match="no conversations|missing"):
            load_data(arguments(path), prompter, frozenset({1}))


@pytest.fixture
def rows(tmp_path):
    """Rows of 60 conversations of random lengths."""
    rng, prompter = random.Random(0), Prompter(make_tokenizer())
    conversations = [
        Conversation("x", ["q" * rng.randint(1, 40)], ["ab" * rng.randint(1, 20)])
        for _ in range(60)
    ]
    return [encode(prompter, c, 64, frozenset({1})) for c in conversations]


def test_batches_hold_every_row_once_and_little_padding(rows):
    batches = by_length(rows, 300)
    assert sorted(id(r) for b in batches for r in b) == sorted(map(id, rows))
    for batch in batches:
        longest = max(len(row.ids) for row in batch)
        assert len(batch) == 1 or longest * len(batch) <= 300
    padded = sum(max(len(r.ids) for r in b) * len(b) for b in batches)
    assert padded < 1.15 * sum(map(batch_size, batches))


def test_data_is_a_function_of_the_seed(rows):
    data, same, other = (TrainingData(rows, seed, 300, 0.1) for seed in (1, 1, 2))
    assert data.num_conversations == (54, 6)
    count = len(data.train)
    order = [data.index(i) for i in range(3 * count)]
    assert order[count : 2 * count] != order[:count]
    for epoch in range(3):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert [same.index(i) for i in range(count + 3, count + 9)] == order[count + 3 : count + 9]
    held = [{id(r) for b in d.held_out for r in b} for d in (data, same, other)]
    assert held[0] == held[1] != held[2]
    assert not held[0] & {id(r) for b in data.train for r in b}


def test_count_of_answer_tokens(rows):
    data = TrainingData(rows, 1, 300, 0.1)
    slow = [0] * 300
    for row in (row for batch in data.train for row in batch):
        for token, masked in zip(row.ids.tolist(), row.mask.tolist()):
            slow[token] += masked
    assert data.count_answers(300).tolist() == slow


def test_collate_pads_on_the_right(rows):
    ids, mask, lengths = collate(rows[:5])
    assert ids.dtype == torch.long and mask.dtype == torch.bool
    for i, row in enumerate(rows[:5]):
        assert ids[i, : lengths[i]].tolist() == row.ids.tolist()
        assert mask[i].sum() == row.mask.sum() and not mask[i, lengths[i] :].any()
