"""SPACE's fine-tuning as a whole: what is learned, resuming, the result, what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer, save_model
from interrupted import curve, interrupted
from space_method import new_method
from tiny_methods import build, decode
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model.common.errors import BadInput
from model.common.loop.turns import StopRules
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.target.loading import load_target
from model.common.training.flags import make_parser
from model.common.training.log import Mean
from model.common.training.trainer import main, train
from model.space import train as script

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


@pytest.fixture(scope="module")
def trained(toy_dir, data_file, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    means = run(command(toy_dir, data_file, folder, **APPEND))
    return SimpleNamespace(folder=folder, means=means, curve=curve(folder))


def prompts_of(folder):
    prompter = Prompter(load_tokenizer(str(folder)))
    return [prompter.render([question(letter)], []) for letter in "aiqu"]


def mean(numbers):
    return sum(numbers) / len(numbers)


@pytest.mark.training
def test_training_raises_what_is_accepted(trained, toy_dir):
    """From nothing to whole groups, and vanilla's ids before and after."""
    means = []
    for folder, flags in ((toy_dir, ["--mask-id", "7", "--mask-num", "3"]), (trained.folder, [])):
        target = load_target(str(folder), "float32", "cpu", "eager")
        given = prompts_of(folder), StopRules(), 24
        expected, ones = decode(target, build("vanilla", str(folder), target, []), *given)
        assert set(sum(ones, [])) == {1}
        drafter = build("space", str(folder), target, flags)
        for num_slots in (1, 3, 4):
            ids, accepted = decode(target, drafter, *given, num_slots)
            assert ids == expected
        means.append(mean(sum(accepted, [])))
    assert means[0] < 1.7 < 2.5 < means[1] <= 4
    tokenizer = load_tokenizer(str(trained.folder))
    assert tokenizer.decode(ids[0]).startswith(saying("a", 12))


@pytest.mark.training
def test_masks_learn(trained):
    first, last = trained.curve[0], trained.means
    for j in (1, 2, 3):
        assert last[f"loss_mask_{j}"] < 0.5 * first[f"loss_mask_{j}"]
        assert last[f"accuracy_mask_{j}"] > 0.8
    assert last["accuracy_text"] > 0.8
    assert trained.curve[-1]["held_out_loss"] == last["loss"]


@pytest.mark.training
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


@pytest.mark.training
def test_what_was_saved_is_what_was_measured(trained):
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


@pytest.mark.training
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


@pytest.mark.training
def test_bad_lines_are_named(toy_dir, data_file, tmp_path, capsys):
    run(command(toy_dir, data_file, tmp_path, **{"num-tokens": 500}))
    out = capsys.readouterr().out
    assert f'left out: {data_file}:151: no list "conversations"' in out
    assert "135 conversations, 15 held out" in out


@pytest.mark.training
def test_separate_masks_and_a_second_run(toy_dir, data_file, tmp_path):
    few = {"num-tokens": 600}
    run(command(toy_dir, data_file, tmp_path / "a", "--separate-masks", **few))
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["space_mask_ids"] == [258, 259, 260] and config["vocab_size"] == 261
    run(command(str(tmp_path / "a"), data_file, tmp_path / "b", **few))  # goes on with its masks
    assert json.loads((tmp_path / "b" / "config.json").read_text())["vocab_size"] == 261
    target = load_target(str(tmp_path / "b"), "float32", "cpu", "eager")
    drafter = build("space", str(tmp_path / "b"), target, [])
    assert drafter.mask_ids.tolist() == [258, 259, 260]
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


@pytest.mark.training
def test_the_published_ids_can_be_given(data_file, tmp_path):
    """A base whose vocabulary was enlarged beforehand: nothing is added."""
    folder = save_model(tmp_path / "target", words=("<m>",), num_hidden_layers=1)
    run(command(folder, data_file, tmp_path / "out", "--mask-id", "258", **{"num-tokens": 500}))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 259 and config["space_mask_ids"] == [258]
