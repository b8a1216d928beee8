"""SPACE's fine-tuning: published samples, the loss against a slow sum, resuming, the result."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer, save_model
from interrupted import interrupted
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model.common import args as arguments
from model.common.contract.drafter import EmptyDrafter
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.prompts.templates import Row
from model.common.target.loading import load_target
from model.common.training.features import Features, FrozenTarget
from model.common.training.flags import make_parser
from model.common.training.log import Mean
from model.common.training.trainer import main, train
from model.space import inference_space, samples
from model.space import train as script

M = 99  # a mask's id
FLAGS = {
    "dtype": "float32",
    "mixed-precision": "no",
    "device": "cpu",
    "num-tokens": 60000,
    "batch-tokens": 300,
    "accumulate": 1,
    "max-length": 60,
    "learning-rate": 0.004,
    "warmup": 0.05,
    "log-every": 20,
    "eval-every": 100,
    "held-out": 0.1,
    "mask-num": 3,
}


def ids_and_mask(*spans, length=None):
    """One row of ids 1, 2, ... whose answers are at the spans."""
    length = length or max(end for _, end in spans)
    mask = torch.zeros(1, length, dtype=torch.bool)
    for begin, end in spans:
        mask[0, begin:end] = True
    return torch.arange(1, length + 1).unsqueeze(0), mask


# ---- samples


def test_published_sample():
    """m = 8, k = 3, s = 2 behind a prompt of two: y1 is id 3."""
    ids, mask = ids_and_mask((2, 10))
    sample = samples.cut_rows(ids, mask, torch.tensor([M] * 3), [2 + 2])
    assert sample.ids.tolist() == [[1, 2, 3, 4, M, M, M]]
    assert sample.labels.tolist() == [[-1, 3, 4, 5, 6, 7, 8]]  # y1 .. y6
    assert sample.places.tolist() == [[0, 0, 0, 0, 1, 2, 3]]
    assert sample.positions is None and sample.allowed is None


def test_rows_without_a_cut_stay():
    ids, mask = ids_and_mask((2, 5), length=6)
    sample = samples.cut_rows(ids.repeat(2, 1), mask.repeat(2, 1), torch.tensor([M]), [None, 3])
    assert sample.ids.tolist() == [[1, 2, 3, 4, 5, 6], [1, 2, 3, M, 0, 0]]
    assert sample.labels.tolist() == [[-1, 3, 4, 5, -1, -1], [-1, 3, 4, 5, -1, -1]]
    assert sample.places.tolist() == [[0] * 6, [0, 0, 0, 1, 0, 0]]


def test_published_cuts():
    """m = 8, k = 3: s from 0 to 4; an answer of three tokens is never cut."""
    torch.manual_seed(0)
    _, mask = ids_and_mask((2, 10), length=12)
    drawn = [samples.draw_cut(mask[0], 3, 1.0) for _ in range(300)]
    assert set(drawn) == {2, 3, 4, 5, 6}
    assert {samples.draw_cut(mask[0], 7, 1.0) for _ in range(20)} == {2}
    assert samples.draw_cut(mask[0], 8, 1.0) is None
    assert samples.draw_cut(ids_and_mask((1, 4))[1][0], 3, 1.0) is None
    assert samples.draw_cut(mask[0], 3, 0.0) is None
    half = sum(samples.draw_cut(mask[0], 3, 0.5) is not None for _ in range(600))
    assert 240 < half < 360


def test_an_answer_is_drawn_after_the_one_before_it():
    torch.manual_seed(0)
    _, mask = ids_and_mask((1, 6), (8, 10), (12, 18))
    drawn = [samples.draw_cut(mask[0], 3, 0.5) for _ in range(800)]
    first = sum(cut is not None and cut < 6 for cut in drawn)
    last = sum(cut is not None and cut >= 12 for cut in drawn)
    assert not [cut for cut in drawn if cut is not None and 6 <= cut < 12]
    assert abs(first - 400) < 70 and abs(last - 200) < 60


def test_spans():
    mask = torch.tensor([False, True, True, False, True])
    assert samples.answer_spans(mask) == [(1, 3), (4, 5)]
    assert samples.answer_spans(mask[:1]) == []


def test_appended_cuts_fit_and_differ():
    torch.manual_seed(0)
    mask = torch.cat([ids_and_mask((2, 10), length=12)[1], ids_and_mask((5, 8), length=12)[1]])
    seen = set()
    for _ in range(60):
        cuts = samples.draw_cuts(mask, 3, 3, 1.0)
        assert cuts.shape == (2, 3) and cuts[1].tolist() == [-1] * 3
        assert len(set(cuts[0].tolist())) == 3
        seen |= set(cuts[0].tolist())
    assert seen == {2, 3, 4, 5, 6}
    few = samples.draw_cuts(mask, 3, 9, 1.0)[0].tolist()
    assert sorted(few) == [-1] * 4 + [2, 3, 4, 5, 6]
    assert samples.draw_cuts(mask, 12, 2, 1.0).shape == (2, 0)
    share = sum((samples.draw_cuts(mask, 3, 1, 0.5)[0] >= 0).item() for _ in range(400))
    assert 150 < share < 250


def test_appended_groups_read_their_prefix_and_themselves():
    ids, mask = ids_and_mask((2, 9), length=10)
    sample = samples.append_groups(ids, mask, torch.tensor([91, 92]), torch.tensor([[5, -1, 2]]))
    assert sample.ids.tolist() == [[*range(1, 11), 91, 92, 91, 92, 91, 92]]
    assert sample.labels[0, 10:].tolist() == [7, 8, -1, -1, 4, 5]
    assert sample.places[0, 10:].tolist() == [1, 2] * 3
    assert sample.positions[0, 10:].tolist() == [5, 6, 0, 1, 2, 3]
    for row in range(16):
        wanted = set(range(row + 1))
        if row >= 10:
            group, own = divmod(row - 10, 2)
            wanted = set(range((5, 0, 2)[group])) | {row - own, row}
        assert set(sample.allowed[0, row].nonzero().flatten().tolist()) == wanted
        if row >= 10 and sample.labels[0, row] >= 0:
            assert sample.positions[0, row] == len(wanted) - 1


def test_no_cut_at_all_is_the_plain_text():
    ids, mask = ids_and_mask((1, 3))
    cuts = samples.draw_cuts(mask, 5, 4, 1.0)
    sample = samples.append_groups(ids, mask, torch.tensor([M] * 5), cuts)
    assert sample.ids.tolist() == ids.tolist() and sample.labels.tolist() == [[2, 3, -1]]


# ---- the loss


def new_method(model, **flags):
    args = {"mask_num": 3, "mask_id": [90, 91, 92], "mask_prob": 1.0, "mask_loss_weight": 1.0}
    args |= {"scheme": "append", "num_groups": 2, "separate_masks": False, "features": "compute"}
    args |= {"gradient_checkpointing": False, "model_path": "m", **flags}
    return script.SpaceTraining(SimpleNamespace(**args), FrozenTarget(model), None)


@pytest.fixture
def no_tokenizer(monkeypatch):
    monkeypatch.setattr("model.common.prompts.prompter.load_tokenizer", lambda path: None)


def new_batch(lengths=(17, 30, 9), seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = [
        Row(torch.randint(0, 90, (n,), generator=generator).int(), torch.arange(n) % 11 > 2)
        for n in lengths
    ]
    return Features(FrozenTarget(make_model()), (), None, {}).batch("x", rows)


def slow_terms(model, batch, sample):
    """(place, -log p) of every label: one plain forward for every mask group and every row."""
    terms = []
    masks = [90, 91, 92]
    for row in range(len(batch.ids)):
        num = int(batch.lengths[row])
        ids, own = batch.ids[row, :num].tolist(), batch.mask[row, :num].tolist()
        whole = sample.places[row].tolist()
        text = [place for place, label in zip(whole, sample.labels[row].tolist()) if label >= 0]
        cuts = []
        for at, place in enumerate(whole):
            if place == 1 and sample.labels[row, at] >= 0:
                cuts.append(at if sample.positions is None else int(sample.positions[row, at]))
        end = cuts[0] if sample.positions is None and cuts else num
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for t in range(num - 1):
            if own[t + 1] and t < end:
                terms.append((0, -logits[t, ids[t + 1]]))
        for cut in cuts:
            logits = model(torch.tensor([ids[:cut] + masks])).logits[0].log_softmax(-1)
            for j in range(3):
                terms.append((j + 1, -logits[cut + j, ids[cut + 1 + j]]))
        assert len(text) == sum(own[1 : end + 1]) + 3 * len(cuts)
    return terms


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("scheme, groups", [("cut", 1), ("append", 1), ("append", 3)])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_loss_against_plain_forwards(no_tokenizer, family, scheme, groups, weight):
    flags = {"scheme": scheme, "num_groups": groups, "mask_loss_weight": weight}
    method = new_method(make_model(family), **flags)
    batch = new_batch()
    torch.manual_seed(5)
    sample = method.sample(batch)
    torch.manual_seed(5)
    loss, metrics = method.loss(batch)
    with torch.no_grad():
        terms = slow_terms(method.module, batch, sample)
    assert {place for place, _ in terms} == {0, 1, 2, 3}
    total = sum(loss * (weight if place else 1) for place, loss in terms) / len(terms)
    torch.testing.assert_close(loss.detach(), total, atol=1e-4, rtol=1e-4)
    for place in range(4):
        own = [loss for other, loss in terms if other == place]
        name = f"loss_mask_{place}" if place else "loss_text"
        torch.testing.assert_close(metrics[name], sum(own) / len(own), atol=1e-4, rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in method.module.parameters())


def test_gradient_checkpointing_changes_nothing(no_tokenizer):
    grads = []
    for on in (False, True):
        method = new_method(make_model(), gradient_checkpointing=on)
        torch.manual_seed(5)
        method.loss(new_batch())[0].backward()
        grads.append(method.module.lm_head.weight.grad)
    torch.testing.assert_close(*grads)


def test_evaluation_masks_every_row(no_tokenizer):
    method = new_method(make_model(), mask_prob=0.0)
    batch = new_batch()
    assert (method.sample(batch).labels[:, batch.ids.shape[1] :] < 0).all()
    method.module.eval()
    assert (method.sample(batch).labels[:, batch.ids.shape[1] :] >= 0).any(1).all()


# ---- a whole run


@pytest.fixture(scope="module")
def toy_dir(tmp_path_factory):
    """A small Llama with the usual initial weights; its vocabulary has rows without a token."""
    folder, tokenizer = tmp_path_factory.mktemp("toy"), make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def question(letter):
    return letter * 3


def saying(letter, num):
    """A language of four sentences: letters count up from the prompt's, four of them, in turn."""
    return "".join(chr(ord(letter) + i % 4) for i in range(num))


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    generator = torch.Generator().manual_seed(0)
    with path.open("w") as out:
        for i in range(150):
            letter, num = "aiqu"[i % 4], int(torch.randint(12, 33, (), generator=generator))
            messages = [{"from": "human", "value": question(letter)}]
            messages += [{"from": "gpt", "value": saying(letter, num)}]
            out.write(json.dumps({"conversations": messages}) + "\n")
        out.write('{"conversations": 5}\n')
    return str(path)


def command(model, data, output, *extra, **changed):
    flags = {"model-path": model, "data": data, "output": str(output), **FLAGS, **changed}
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))] + [*extra]


APPEND = {"scheme": "append", "num-groups": 4, "mask-prob": 1}


def run(argv, stop_at=None):
    """Train; interrupted after stop_at training batches of this run."""

    stopping = interrupted(script.SpaceTraining, stop_at)
    parser = make_parser("train_space", script.__doc__, script.add_args, script.RECIPE)
    return train(parser.parse_args(argv), stopping, "the command")


def curve(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_s")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def trained(toy_dir, data_file, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    means = run(command(toy_dir, data_file, folder, **APPEND))
    return SimpleNamespace(folder=folder, means=means, curve=curve(folder))


def drafter_of(folder, target, *flags):
    parser = arguments.make_parser("space", inference_space.__doc__, inference_space.add_args)
    return inference_space.build(parser.parse_args(["--model-path", str(folder), *flags]), target)


def decoded(target, drafter, prompts, batch=4):
    turns = []
    for begin in range(0, len(prompts), batch):
        part = prompts[begin : begin + batch]
        seeds = [0] * len(part)
        turns += generate(target, drafter, part, Sampler(), seeds, StopRules(), 24)
    return [turn.output_ids for turn in turns], [n for turn in turns for n in turn.accept_lengths]


def prompts_of(folder):
    prompter = Prompter(load_tokenizer(str(folder)))
    return [prompter.render([question(letter)], []) for letter in "aiqu"]


def mean(numbers):
    return sum(numbers) / len(numbers)


def test_training_raises_what_is_accepted(trained, toy_dir):
    """From nothing to whole groups, and vanilla's ids before and after."""
    means = []
    for folder, flags in ((toy_dir, ["--mask-id", "7", "--mask-num", "3"]), (trained.folder, [])):
        target = load_target(str(folder), "float32", "cpu", "eager")
        drafter = drafter_of(folder, target, *flags)
        expected, ones = decoded(target, EmptyDrafter(), prompts_of(folder))
        assert mean(ones) == 1
        for batch in (1, 4):
            ids, lengths = decoded(target, drafter, prompts_of(folder), batch)
            assert ids == expected
        means.append(mean(lengths))
    assert means[0] < 1.7 < 2.5 < means[1] <= 4
    tokenizer = load_tokenizer(str(trained.folder))
    assert tokenizer.decode(ids[0]).startswith(saying("a", 12))


def test_masks_learn(trained):
    first, last = trained.curve[0], trained.means
    for j in (1, 2, 3):
        assert last[f"loss_mask_{j}"] < 0.5 * first[f"loss_mask_{j}"]
        assert last[f"accuracy_mask_{j}"] > 0.8
    assert last["accuracy_text"] > 0.8
    assert trained.curve[-1]["held_out_loss"] == last["loss"]


def test_any_tool_loads_the_model(trained, toy_dir):
    names = {path.name for path in trained.folder.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= names
    assert "checkpoint.pt" not in names
    config = json.loads((trained.folder / "config.json").read_text())
    assert config["space_mask_ids"] == [258] and config["space_mask_num"] == 3
    assert config["dtype"] == "float16" and config["architectures"] == ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(trained.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained.folder)
    assert tokenizer.convert_tokens_to_ids("<|space_mask|>") == 258
    assert tokenizer.decode([258], skip_special_tokens=True) == ""
    ids = torch.tensor([prompts_of(trained.folder)[0]])
    out = model.generate(ids, do_sample=False, max_new_tokens=12)
    assert tokenizer.decode(out[0, ids.shape[1] :]) == saying("a", 12)
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(toy_dir)) + 1
    card = (trained.folder / "README.md").read_text()
    assert card.startswith("# Target fine-tuned with mask tokens (SPACE)")
    for words in ("the command", "sha256", "loss_mask_1", "| seed | 0 |", "model.safetensors"):
        assert words in card


def test_what_was_saved_is_what_was_measured(trained, no_tokenizer):
    """The held-out numbers of the card are those of the loaded files: nothing else was rounded."""
    target = load_target(str(trained.folder), "float16", "cpu", "eager")
    assert target.model.model.rotary_emb.inv_freq.dtype == torch.float32
    method = new_method(target.model, mask_id=[258], num_groups=4)
    before = method.module.model.rotary_emb.inv_freq.clone()
    method.module.half()
    method.tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    method.module.save_pretrained = lambda folder: None
    method.save(None)
    method.module.float()
    assert torch.equal(method.module.model.rotary_emb.inv_freq, before)


SHORT = {**APPEND, "num-tokens": 9000, "log-every": 4, "eval-every": 7}


@pytest.fixture(scope="module")
def short(toy_dir, data_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    means = run(command(toy_dir, data_file, folder, **SHORT))
    return SimpleNamespace(folder=folder, means=means, curve=curve(folder))


@pytest.mark.parametrize("stops, seconds", [((9,), 999), ((20, 6), 999), ((5, 3), 0)])
def test_an_interrupted_run_goes_on_exactly(short, toy_dir, data_file, tmp_path, stops, seconds):
    from safetensors.torch import load_file

    argv = command(toy_dir, data_file, tmp_path, **SHORT, **{"save-every-s": seconds})
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(argv, stop)
    assert run(argv) == short.means
    assert curve(tmp_path) == short.curve
    one, other = (load_file(folder / "model.safetensors") for folder in (short.folder, tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_bad_lines_are_named(toy_dir, data_file, tmp_path, capsys):
    run(command(toy_dir, data_file, tmp_path, **{"num-tokens": 500}))
    out = capsys.readouterr().out
    assert f'left out: {data_file}:151: no list "conversations"' in out
    assert "135 conversations, 15 held out" in out


def test_separate_masks_and_a_second_run(toy_dir, data_file, tmp_path):
    few = {"num-tokens": 600}
    run(command(toy_dir, data_file, tmp_path / "a", "--separate-masks", **few))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["space_mask_ids"] == [258, 259, 260] and config["vocab_size"] == 261
    run(command(str(tmp_path / "a"), data_file, tmp_path / "b", **few))  # goes on with its masks
    assert json.loads((tmp_path / "b" / "config.json").read_text())["vocab_size"] == 261
    target = load_target(str(tmp_path / "b"), "float32", "cpu", "eager")
    assert drafter_of(tmp_path / "b", target).mask_ids.tolist() == [258, 259, 260]
    with pytest.raises(BadInput, match="--separate-masks is for new ids"):
        run(command(str(tmp_path / "a"), data_file, tmp_path / "c", "--separate-masks"))


def test_means_are_of_the_batches_that_have_a_name():
    mean = Mean()
    mean.add({"a": 1.0}, 2)
    mean = Mean(mean.state())
    mean.add({"a": 4.0, "b": 5.0}, 1)
    assert mean.take() == {"a": 2.0, "b": 5.0} and mean.take() == {}
    assert Mean({"sums": {"a": 4.0}, "weight": 2}).take() == {"a": 2.0}  # of older checkpoints


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_the_tables_means(tied):
    tokenizer = make_tokenizer()
    model = make_model(vocab_size=len(tokenizer), tie_word_embeddings=tied)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    means = embedding.mean(0).clone(), head.mean(0).clone()
    assert script.add_masks(model, tokenizer, 2) == [258, 259]
    assert model.config.vocab_size == 260 and len(tokenizer) == 260
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for table, row in zip(tables, means):
        torch.testing.assert_close(table[258:], row.expand(2, -1))
    assert (tables[0] is tables[1]) == tied


def test_settings_that_cannot_be_saved_are_left_out(model_dir):
    model = make_model()
    model.generation_config.temperature, model.generation_config.eos_token_id = 0.9, [1, 2]
    script.keep_stop_ids(model)
    model.generation_config.validate(strict=True)
    assert model.generation_config.eos_token_id == [1, 2]


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--num-groups", "2"], "--num-groups above 1 needs --scheme append"),
        (["--features", "cache"], "--features cache: all weights are trained"),
        (["--mask-id", "261"], "--mask-id 261: the model's vocabulary has 261 ids"),
        (["--mask-id", "5", "6"], "--mask-num 3: there are mask ids for 2 places only"),
        (["--mask-id", "5", "--separate-masks"], "--separate-masks is for new ids"),
    ],
)
def test_bad_input_is_one_line(toy_dir, data_file, tmp_path, capsys, extra, message):
    argv = command(toy_dir, data_file, tmp_path / "out", *extra)
    with pytest.raises(SystemExit) as end:
        main("train_space", script.__doc__, script.add_args, script.SpaceTraining, {}, argv)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"train_space: {message}")


def test_the_published_ids_can_be_given(data_file, tmp_path):
    """A base whose vocabulary was enlarged beforehand: nothing is added."""
    folder = save_model(tmp_path / "target", words=("<m>",), num_hidden_layers=1)
    run(command(folder, data_file, tmp_path / "out", "--mask-id", "258", **{"num-tokens": 500}))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 259 and config["space_mask_ids"] == [258]
