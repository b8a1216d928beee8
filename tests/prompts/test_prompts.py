"""Prompts: FastChat's Vicuna text, chat templates, plain text; one BOS; where answers stop."""

from types import SimpleNamespace

import pytest
from conftest import make_tokenizer
from tokenizers import processors

from model.common.errors import BadInput
from model.common.prompts.prompter import Prompter, load_tokenizer

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TURNS = ["Who are you?", "And shorter?"]
ANSWERS = ["I am a model."]


def tokenizer(adds_bos=True, words=(), chat=True):
    """The tests' tokenizer, made to put <s> before a text as Llama's does."""
    made = make_tokenizer(words)
    if adds_bos:
        template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        made.backend_tokenizer.post_processor = template
    if not chat:
        made.chat_template = None
    return made


def config(eos):
    return SimpleNamespace(eos_token_id=eos)


def test_vicuna_text():
    prompter = Prompter(tokenizer(), "vicuna_v1.1")
    first = prompter.render(TURNS, [])
    assert prompter.tokenizer.decode(first) == f"<s>{SYSTEM} USER: Who are you? ASSISTANT:"
    second = prompter.tokenizer.decode(prompter.render(TURNS, ANSWERS))
    assert second == (
        f"<s>{SYSTEM} USER: Who are you? ASSISTANT: I am a model.</s>USER: And shorter? ASSISTANT:"
    )
    assert prompter.render(TURNS, []) == first


def test_chat_template():
    prompter = Prompter(tokenizer())
    decode = prompter.tokenizer.decode
    first = "<s>user: Who are you?\n"
    assert decode(prompter.render(TURNS, [])) == first + "assistant: "
    assert decode(prompter.render(TURNS, ANSWERS)) == (
        first + "assistant: I am a model.\n</s>user: And shorter?\nassistant: "
    )


@pytest.mark.parametrize("template", [None, "plain"])
def test_plain_text(template):
    """What is asked for, and what is left where the tokenizer has no chat template."""
    prompter = Prompter(tokenizer(chat=template == "plain"), template)
    decode = prompter.tokenizer.decode
    assert decode(prompter.render(TURNS, [])) == "<s>Who are you?\n"
    second = "<s>Who are you?\nI am a model.\nAnd shorter?\n"
    assert decode(prompter.render(TURNS, ANSWERS)) == second
    assert prompter.name == "plain"


@pytest.mark.parametrize("template", [None, "plain", "vicuna_v1.1", "llama-2"])
@pytest.mark.parametrize("answers", [[], ANSWERS])
def test_one_bos_in_front(template, answers):
    ids = Prompter(tokenizer(), template).render(TURNS, answers)
    assert ids[0] == 0
    assert ids[:2].count(0) == 1
    if template != "llama-2":  # which begins every turn with one
        assert ids.count(0) == 1


def test_no_bos_where_the_tokenizer_adds_none():
    assert 0 not in Prompter(tokenizer(adds_bos=False), "vicuna_v1.1").render(TURNS, [])


def test_template_without_bos_is_not_given_one():
    made = tokenizer()
    made.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert 0 not in Prompter(made).render(TURNS, [])


def test_rendering_leaves_its_arguments_alone():
    turns, answers = list(TURNS), list(ANSWERS)
    for template in (None, "plain", "vicuna_v1.1"):
        prompter = Prompter(tokenizer(), template)
        ids = prompter.render(turns, answers)
        assert prompter.render(turns, answers) == ids
    assert (turns, answers) == (TURNS, ANSWERS)


@pytest.mark.parametrize(
    "eos, ids", [(1, {1}), ([1, 50, 60], {1, 50, 60}), (50, {1, 50}), (None, {1}), ([], {1})]
)
def test_stop_ids_of_config_and_tokenizer(eos, ids):
    rules = Prompter(tokenizer()).stop_rules(config(eos))
    assert rules.eos_ids == ids
    assert rules.strings == ()


def test_stop_ids_without_config_or_eos_token():
    made = tokenizer()
    assert Prompter(made).stop_rules(None).eos_ids == {1}
    made.eos_token = None
    assert Prompter(made).stop_rules(config(None)).eos_ids == set()


def test_stop_ids_of_the_template():
    rules = Prompter(tokenizer(), "chatglm3").stop_rules(config([7, 8]))
    assert rules.eos_ids == {1, 7, 8, 64795, 64797, 2}


@pytest.mark.parametrize(
    "template, strings",
    [("vicuna_v1.1", ()), ("zero_shot", ("###",)), ("aquila-chat", ("###", "</s>", "[UNK]"))],
)
def test_stop_strings_of_the_template(template, strings):
    assert Prompter(tokenizer(), template).stop_rules(config(1)).strings == strings


def test_stop_string_ends_an_answer():
    prompter = Prompter(tokenizer(), "zero_shot")
    rules = prompter.stop_rules(config(1))
    ids = prompter.tokenizer("A line\n### B", add_special_tokens=False).input_ids
    kept, reason = rules.cut(ids, len(ids), 100)
    assert (kept, reason) == (len("A line\n###"), "stop")
    assert prompter.text(ids[:kept], rules) == "A line"


def test_text_has_no_special_tokens():
    prompter = Prompter(tokenizer())
    rules = prompter.stop_rules(config(1))
    ids = prompter.tokenizer(" hello ", add_special_tokens=False).input_ids
    assert prompter.text([*ids, 1], rules) == "hello"


def test_unknown_template_is_named():
    with pytest.raises(BadInput, match="no_such_template"):
        Prompter(tokenizer(), "no_such_template")


def test_saved_tokenizer_is_loaded(tmp_path):
    tokenizer(words=("zzz",)).save_pretrained(tmp_path)
    loaded = Prompter(load_tokenizer(str(tmp_path)))
    assert loaded.render(TURNS, ANSWERS) == Prompter(tokenizer(words=("zzz",))).render(
        TURNS, ANSWERS
    )


def test_missing_tokenizer_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="no tokenizer") as refused:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(refused.value)
