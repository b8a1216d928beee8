"""SPACE's fine-tuning as a whole: what is learned, the result, masks old and new."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_tokenizer
from interrupted import curve
from space_method import new_method
from tiny_methods import build, decode
from trainers import new_files, trained
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model.common.errors import BadInput
from model.common.loop.turns import StopRules
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.target.loading import load_target
from model.space import train as script

FLAGS = {
    "num-tokens": 60000,
    "accumulate": 1,
    "max-length": 60,
    "learning-rate": 0.004,
    "warmup": 0.05,
    "log-every": 20,
    "eval-every": 100,
    "scheme": "append",
    "num-groups": 4,
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


def sayings():
    """Questions, and answers of 12 to 32 letters."""
    generator = torch.Generator().manual_seed(0)
    for i in range(150):
        letter, num = "aiqu"[i % 4], int(torch.randint(12, 33, (), generator=generator))
        messages = [{"from": "human", "value": question(letter)}]
        yield {"conversations": [*messages, {"from": "gpt", "value": saying(letter, num)}]}


@pytest.fixture(scope="module")
def files(tmp_path_factory, toy_dir):
    return new_files(tmp_path_factory.mktemp("data"), chats=sayings()) | {"target": toy_dir}


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    means = trained("space", files, folder, **FLAGS)
    return SimpleNamespace(folder=folder, means=means, curve=curve(folder))


def prompts_of(folder):
    prompter = Prompter(load_tokenizer(str(folder)))
    return [prompter.render([question(letter)], []) for letter in "aiqu"]


def mean(numbers):
    return sum(numbers) / len(numbers)


@pytest.mark.training
def test_training_raises_what_is_accepted(run, toy_dir):
    """From nothing to whole groups, and vanilla's ids before and after."""
    means = []
    for folder, flags in ((toy_dir, ["--mask-id", "7", "--mask-num", "3"]), (run.folder, [])):
        target = load_target(str(folder), "float32", "cpu", "eager")
        given = prompts_of(folder), StopRules(), 24
        expected, ones = decode(target, build("vanilla", str(folder), target, []), *given)
        assert set(sum(ones, [])) == {1}
        drafter = build("space", str(folder), target, flags)
        ids, accepted = decode(target, drafter, *given)
        assert ids == expected
        means.append(mean(sum(accepted, [])))
    assert means[0] < 1.7 < 2.5 < means[1] <= 4
    tokenizer = load_tokenizer(str(run.folder))
    assert tokenizer.decode(ids[0]).startswith(saying("a", 12))


@pytest.mark.training
def test_masks_learn(run):
    first, last = run.curve[0], run.means
    for j in (1, 2, 3):
        assert last[f"loss_mask_{j}"] < 0.5 * first[f"loss_mask_{j}"]
        assert last[f"accuracy_mask_{j}"] > 0.8
    assert last["accuracy_text"] > 0.8
    assert run.curve[-1]["held_out_loss"] == last["loss"]


@pytest.mark.training
def test_any_tool_loads_the_model(run, toy_dir):
    config = json.loads((run.folder / "config.json").read_text())
    assert config["space_mask_ids"] == [258] and config["space_mask_num"] == 3
    assert config["dtype"] == "float16" and config["architectures"] == ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(run.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    assert tokenizer.convert_tokens_to_ids("<|space_mask|>") == 258
    assert tokenizer.decode([258], skip_special_tokens=True) == ""
    ids = torch.tensor([prompts_of(run.folder)[0]])
    out = model.generate(ids, do_sample=False, max_new_tokens=12)
    assert tokenizer.decode(out[0, ids.shape[1] :]) == saying("a", 12)
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(toy_dir)) + 1


@pytest.mark.training
def test_what_was_saved_is_what_was_measured(run):
    """The held-out numbers of the card are those of the loaded files: nothing else was rounded."""
    target = load_target(str(run.folder), "float16", "cpu", "eager")
    assert target.model.model.rotary_emb.inv_freq.dtype == torch.float32
    method = new_method(target.model, mask_id=[258], num_groups=4)
    before = method.module.model.rotary_emb.inv_freq.clone()
    method.module.half()
    method.tokenizer = SimpleNamespace(save_pretrained=lambda folder: None)
    method.module.save_pretrained = lambda folder: None
    method.save(None)
    method.module.float()
    assert torch.equal(method.module.model.rotary_emb.inv_freq, before)


@pytest.mark.training
def test_separate_masks_and_a_second_run(files, tmp_path):
    """The second one goes on with the masks of the first."""
    trained("space", files, tmp_path / "a", **{"num-tokens": 600, "separate-masks": ""})
    again = files | {"target": str(tmp_path / "a")}
    trained("space", again, tmp_path / "b", **{"num-tokens": 600})
    for folder in ("a", "b"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["space_mask_ids"] == [258, 259, 260] and config["vocab_size"] == 261


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


def test_given_masks_are_named_and_settings_that_cannot_be_saved_are_left_out():
    model = make_model()
    model.generation_config.temperature, model.generation_config.eos_token_id = 0.9, [1, 2]
    assert new_method(model).masks.tolist() == [90, 91, 92] == model.config.space_mask_ids
    assert model.config.vocab_size == 97
    model.generation_config.validate(strict=True)
    assert model.generation_config.eos_token_id == [1, 2]


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"mask_id": [97, 1, 2]}, "--mask-id 97: the model's vocabulary has 97 ids"),
        ({"mask_id": [5, 6]}, "--mask-num 3: there are mask ids for 2 places only"),
        ({"separate_masks": True}, "--separate-masks is for new ids"),
    ],
)
def test_masks_that_cannot_be_used(flags, message):
    with pytest.raises(BadInput, match=message):
        new_method(make_model(), **flags)
