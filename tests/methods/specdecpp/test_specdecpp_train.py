"""SpecDec++'s data: public files, labels, examples and how they are made, mixing, losses."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, save_model

from model.common.errors import BadInput
from model.common.prompts.templates import Rejected
from model.common.target.loading import load_model
from model.common.training.features import FrozenTarget
from model.common.training.flags import make_parser
from model.specdecpp import prepare, scoring
from model.specdecpp import train as script
from model.specdecpp.examples import Example, prompt_of, read_examples, read_prompts

ALPACA = {"instruction": "Name a bird.", "input": "", "output": "An owl."}
ALPACA_INPUT = {"instruction": "Add.", "input": "1, 2", "output": "3"}
HUMANEVAL = {"task_id": "HumanEval/0", "prompt": "def f(x):\n", "canonical_solution": "    return"}
GSM8K = {"question": "How many is two?", "answer": "2\n#### 2"}
CHAT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
RECORDS = [ALPACA, ALPACA_INPUT, HUMANEVAL, GSM8K, CHAT]


def write(path, records):
    """As .json or as .jsonl, by the name."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(json.dumps(records) if path.suffix == ".json" else text)
    return str(path)


def test_prompts_of_the_public_formats():
    assert prompt_of(ALPACA) == "Name a bird."
    assert prompt_of(ALPACA_INPUT) == "Add.\nInput: 1, 2"
    assert prompt_of(HUMANEVAL).endswith("\n\ndef f(x):\n")
    assert prompt_of(GSM8K) == "How many is two?\n\nLet's think step by step."
    assert prompt_of(CHAT) == "Hi"


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_bad_records_are_counted_and_named(tmp_path, name, capsys):
    bad = [5, {"x": 1}, {"instruction": ""}, {"task_id": "a"}, {"question": 3}]
    bad += [{"conversations": []}, {"instruction": "a", "input": 3}]
    path = write(tmp_path / name, [GSM8K, *bad, ALPACA])
    if name == "data.jsonl":
        with open(path, "a", encoding="utf-8") as out:
            out.write("{broken\n")
    rejected = Rejected()
    assert [prompt.number for prompt in read_prompts(path, rejected)] == [0, 8]
    lines = capsys.readouterr().out.splitlines()
    assert rejected.count == len(lines) == (8 if name == "data.jsonl" else 7)
    assert name == "data.json" or f"{path}:2: no JSON object" in lines[0]
    assert any("question is no text" in line for line in lines)


def test_labels():
    """1 where the target finds the token likelier, p / q elsewhere."""
    guessed = torch.tensor([[0.0, math.log(2), -40], [0.0, 0.0, -40], [3.0, 0.0, 0.0]])
    wanted = torch.tensor([[0.0, 0.0, -40], [0.0, 9.0, -40], [0.0, 1.0, 0.0]])
    tokens, chances = scoring.propose(guessed, wanted, torch.zeros(3), 0, "plain")
    assert tokens == [1, 0, 0]
    wanted_laws = [0.75, 2 / (1 + math.e**9)]
    assert chances[:2] == pytest.approx(wanted_laws, abs=1e-6)
    _, chances = scoring.propose(guessed, wanted, torch.zeros(3), 0, "warped")
    assert chances == [0.0, 0.0, 0.0]
    tokens, chances = scoring.propose(guessed, wanted, torch.tensor([0.9, 0.9, 0.99]), 1, "plain")
    assert tokens == [1, 1, 2] and chances[1] == 1.0
    same, _ = scoring.propose(guessed, wanted, torch.tensor([0.9, 0.9, 0.99]), 1, "warped")
    assert same == tokens
    half = torch.tensor([[0.0, math.log(3)]])
    equal = torch.tensor([[0.0, 0.0]])
    assert scoring.propose(half, half, torch.ones(1), 1, "plain")[1] == [1.0]
    assert scoring.propose(half, equal, torch.ones(1), 1, "plain")[1] == pytest.approx([2 / 3])


@pytest.fixture(scope="module")
def dirs(tmp_path_factory):
    target = save_model(tmp_path_factory.mktemp("target"), scale=0.3)
    draft = save_model(tmp_path_factory.mktemp("draft"), seed=5, scale=0.3, num_hidden_layers=1)
    data = write(tmp_path_factory.mktemp("data") / "data.jsonl", RECORDS * 8)
    return SimpleNamespace(target=target, draft=draft, data=data)


def prepared(dirs, output, *flags):
    argv = ["--model-path", dirs.target, "--drafter-path", dirs.draft, "--data", dirs.data]
    argv += ["--output", str(output), "--dtype", "float32", "--device", "cpu"]
    argv += ["--max-new-tokens", "24", *flags]
    prepare.prepare(prepare.make_parser().parse_args(argv))
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture(scope="module")
def examples(dirs, tmp_path_factory):
    return prepared(dirs, tmp_path_factory.mktemp("examples") / "all.jsonl")


def test_examples_are_what_they_say(dirs, examples):
    assert [example["id"] for example in examples] == list(range(40))
    target, draft = (load_model(path, "float32", "cpu") for path in (dirs.target, dirs.draft))
    for model in (target, draft):
        model.set_attn_implementation("eager")
    for example in examples[:6]:
        prefix, tokens, guesses = (example[name] for name in ("prefix", "tokens", "draft"))
        assert len(tokens) == len(guesses) == len(example["p_acc"]) <= 24
        ids = torch.tensor([prefix + tokens])
        with torch.inference_mode():
            laws = [m(ids).logits[0, len(prefix) - 1 : -1].softmax(-1) for m in (target, draft)]
        for i, guess in enumerate(guesses):
            ratio = min(1.0, (laws[0][i, guess] / laws[1][i, guess]).item())
            assert example["p_acc"][i] == pytest.approx(ratio, abs=1e-4)
    chances = [chance for example in examples for chance in example["p_acc"]]
    assert min(chances) < 0.1 and max(chances) == 1.0
    assert examples[0]["tokens"] != examples[5]["tokens"]  # one prompt, drawn apart


def alike(found, wanted):
    """Whether examples are the same but for rounding."""
    chances = [[e["p_acc"] for e in some] for some in (found, wanted)]
    rest = [[{**e, "p_acc": 0} for e in some] for some in (found, wanted)]
    return rest[0] == rest[1] and all(
        a == pytest.approx(b, abs=1e-4) for a, b in zip(*chances, strict=True)
    )


def test_preparing_does_not_depend_on_batches_or_interruptions(dirs, examples, tmp_path):
    output = tmp_path / "part.jsonl"
    first = prepared(dirs, output, "--limit", "7", "--batch-size", "3")
    assert alike(first, examples[:7])
    with output.open("a") as out:
        out.write('{"id": 7, "pro')
    whole = prepared(dirs, output, "--batch-size", "16")
    assert whole[:7] == first and alike(whole, examples)
    assert prepared(dirs, output) == whole


def test_greedy_examples(dirs, tmp_path):
    found = prepared(
        dirs, tmp_path / "g.jsonl", "--temperature", "0", "--labels", "warped", "--limit", "5"
    )
    for example in found:
        same = [float(a == b) for a, b in zip(example["tokens"], example["draft"])]
        assert example["p_acc"] == same


def test_other_settings_and_broken_files_are_refused(dirs, examples, tmp_path):
    output = tmp_path / "x.jsonl"
    prepared(dirs, output, "--limit", "3")
    for flags, name in ((["--seed", "1"], "seed"), (["--temperature", "0.5"], "temperature")):
        with pytest.raises(BadInput, match=f"of another {name}; --overwrite replaces it"):
            prepared(dirs, output, *flags)
    assert len(prepared(dirs, output, "--seed", "1", "--limit", "2", "--overwrite")) == 2
    output.write_text("broken\n")
    with pytest.raises(BadInput, match=r"x.jsonl:1: broken line; --overwrite starts anew"):
        prepared(dirs, output, "--seed", "1")
    (tmp_path / "x.meta.json").unlink()
    with pytest.raises(BadInput, match="exists without x.meta.json"):
        prepared(dirs, output)


def test_bad_data_is_one_line(dirs, tmp_path, capsys):
    for data, words in (("none.jsonl", "No such file"), ("empty.jsonl", "no conversations")):
        if data == "empty.jsonl":
            (tmp_path / data).write_text("")
        argv = ["--model-path", dirs.target, "--drafter-path", dirs.draft]
        argv += ["--data", str(tmp_path / data), "--output", str(tmp_path / "o.jsonl")]
        with pytest.raises(SystemExit) as end:
            prepare.main(argv)
        assert end.value.code == 2
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith("prepare_specdecpp: ") and words in error[-1]


def test_prompts_that_do_not_fit_are_left_out(dirs, tmp_path, capsys):
    long = SimpleNamespace(**{**vars(dirs), "data": str(tmp_path / "d.jsonl")})
    write(tmp_path / "d.jsonl", [ALPACA, {"instruction": "a" * 600}, GSM8K])
    found = prepared(long, tmp_path / "o.jsonl")
    assert [example["id"] for example in found] == [0, 2]
    assert "d.jsonl:2: prompt of" in capsys.readouterr().out


EXAMPLE = Example(
    "x:1", [5, 6], list(range(20, 70)), list(range(30, 80)), [i / 50 for i in range(50)]
)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 1.0])
def test_mixing(ratio):
    row = script.mixed_row(EXAMPLE, ratio, "3 0", 1000)
    assert row.ids[:2].tolist() == [5, 6] and not row.mask[:2].any()
    taken = zip(row.ids[2:].tolist(), row.mask[2:].tolist(), EXAMPLE.tokens, EXAMPLE.draft)
    assert all(token == (guess if own else truth) for token, own, truth, guess in taken)
    assert row.labels[2:].tolist() == pytest.approx(EXAMPLE.p_acc)
    share = sum(script.mixed_row(EXAMPLE, ratio, f"{i}", 999).mask[2:].sum() for i in range(200))
    assert share / 10_000 == pytest.approx(1 - ratio, abs=0.02)
    again = script.mixed_row(EXAMPLE, ratio, "3 0", 1000)
    assert torch.equal(row.mask, again.mask)
    short = script.mixed_row(EXAMPLE, ratio, "3 0", 9)
    assert [len(part) for part in short] == [9, 9, 9]
    assert torch.equal(short.ids, row.ids[:9])


def test_losses():
    def loss(logits, labels, weight=6.0):
        return script.weighted_loss(torch.tensor(logits), torch.tensor(labels), weight).item()

    assert loss([[0.0, 1.0]], [0.25]) == pytest.approx(1.260630, abs=1e-6)
    assert loss([[0.0, 1.0], [0.5, -0.5]], [0.25, 0.9]) == pytest.approx(1.177262, abs=1e-6)
    for label, weight in ((0.0, 1.0), (0.3, 6.0), (1.0, 12.0)):
        assert loss([[0.0, 0.0]], [label], weight) == pytest.approx(math.log(2))
    empty = script.weighted_loss(torch.zeros(0, 2, requires_grad=True), torch.zeros(0), 6.0)
    assert empty.item() == 0
    empty.backward()


def test_divergence():
    labels = torch.tensor([0.0, 0.25, 1.0])
    exact = torch.stack([1 - labels, labels], 1).clamp(min=1e-30).log()
    assert script.divergence(exact, labels).item() == pytest.approx(0, abs=1e-6)
    flat = script.divergence(torch.zeros(3, 2), labels).item()
    own = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert flat == pytest.approx(math.log(2) - own / 3, abs=1e-6)
    assert script.divergence(torch.zeros(0, 2), torch.zeros(0)).item() == 0


def trainer(*flags, vocab_size=97):
    """Its AcceptanceTraining on EXAMPLE, without a run."""
    argv = ["--model-path=m", "--data=d", "--output=o", *flags]
    args = make_parser("t", "", script.add_args, script.RECIPE).parse_args(argv)
    data = SimpleNamespace(train=[[script.mixed_row(EXAMPLE, 0.0, "0", 99)]], held_out=[])
    return script.AcceptanceTraining(args, FrozenTarget(make_model(vocab_size=vocab_size)), data)


@pytest.mark.parametrize(
    "flags, num_blocks", [([], 1), (["--untied"], 3), (["--num-layers", "0"], 0)]
)
def test_heads_of_the_flags(flags, num_blocks):
    assert len(trainer(*flags).module.blocks) == num_blocks


def test_ids_of_another_model_are_refused():
    with pytest.raises(BadInput, match="d: id 79, but m has 79 ids"):
        trainer(vocab_size=79)


def test_the_published_form_is_read(examples, tmp_path):
    lists = ("prefix", "tokens", "draft", "p_acc")
    old = [{**e, **{name: str(e[name]) for name in lists}} for e in examples]
    rejected = Rejected()
    found = list(read_examples(write(tmp_path / "train.json", old), rejected))
    assert rejected.count == 0 and len(found) == len(examples)
    assert [list(example)[1:] for example in found] == [[e[n] for n in lists] for e in examples]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"draft": [1]}, "not equally long"),
        ({"p_acc": [2.0, 0.5]}, "p_acc is not between 0 and 1"),
        ({"tokens": [-1, 3]}, "tokens is not between 0"),
        ({"tokens": "[1, 2"}, "tokens is no JSON list"),
        ({"prefix": []}, "prefix is empty"),
        ({"prefix": [1.5]}, "prefix is no list of numbers"),
        ({"p_acc": None}, "p_acc is no list"),
        ({"tokens": [], "draft": [], "p_acc": []}, "or empty"),
    ],
)
def test_broken_examples_are_named(tmp_path, change, reason):
    good = {"prefix": [1], "tokens": [1, 2], "draft": [3, 4], "p_acc": [1, 0.5]}
    path = write(tmp_path / "e.jsonl", [good, {**good, **change}])
    rejected = Rejected()
    assert len(list(read_examples(path, rejected))) == 1
    assert rejected.first.startswith(f"{path}:2: ") and reason in rejected.first
