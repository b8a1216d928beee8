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


def test_a_template_that_is_no_text_is_named():
    """FastChat's of models behind an API."""
    for more in ({}, {"system": "Be brief."}):
        with pytest.raises(BadInput, match="--template chatgpt"):
            Prompter(tokenizer(), "chatgpt", **more)


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
    assert "\n" not in str(refused.value) and not str(refused.value).endswith(":")
    with pytest.raises(BadInput, match="/none: no tokenizer: no such directory$"):
        load_tokenizer(str(tmp_path / "none"))


# the system's message, the template's variables, ends of the command line


def test_system_prompt():
    made = tokenizer()
    chat = Prompter(made, system="Be brief.")
    assert made.decode(chat.render(TURNS, [])) == (
        "<s>system: Be brief.\nuser: Who are you?\nassistant: "
    )
    vicuna = Prompter(made, "vicuna_v1.1", system="Be brief.")
    assert made.decode(vicuna.render(TURNS, [])) == "<s>Be brief. USER: Who are you? ASSISTANT:"
    plain = Prompter(made, "plain", system="Be brief.")
    assert made.decode(plain.render(TURNS, [])) == "<s>Be brief.\nWho are you?\n"
    for prompter in (chat, vicuna, plain):
        assert "Be brief." in made.decode(prompter.render(TURNS, ANSWERS))
        own = made.decode(prompter.render(TURNS, [], "Be long."))
        assert "Be long." in own and "Be brief." not in own  # a question's own comes first


MUTE = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    "chat, template, words",
    [(MUTE, None, "no place"), (STRICT, None, "no system role"), (STRICT, "yuan", "yuan has no")],
)
def test_a_system_prompt_that_nobody_would_see_is_refused(chat, template, words):
    made = tokenizer()
    made.chat_template = chat
    with pytest.raises(BadInput, match="--system-prompt: ") as refused:
        Prompter(made, template, system="Be brief.")
    assert words in str(refused.value)


THINKING = (
    "{% set thoughts = 2 %}{% if not enable_thinking is defined %}{% set enable_thinking = false %}"
    "{% endif %}{% generation %}{% if enable_thinking %}<think>{% endif %}{% endgeneration %}"
)


def test_template_args():
    made = tokenizer()
    made.chat_template = made.chat_template + THINKING
    usual = Prompter(made).render(TURNS, [])
    assert Prompter(made, variables={"enable_thinking": False}).render(TURNS, []) == usual
    found = Prompter(made, variables={"enable_thinking": True}).render(TURNS, [])
    assert made.decode(found) == made.decode(usual) + "<think>"


@pytest.mark.parametrize(
    "template, variables, word",
    [
        (None, {"enable_thinkng": False}, "enable_thinkng"),
        (None, {"add_generation_prompt": False}, "add_generation_prompt"),
        (None, {"tokenize": False}, "tokenize"),
        (None, {"messages": []}, "messages"),
        (None, {"thoughts": 1}, "thoughts"),
        ("plain", {"enable_thinking": False}, "plain"),
        ("vicuna_v1.1", {}, "vicuna_v1.1"),
    ],
)
def test_template_args_without_effect_are_refused(template, variables, word):
    made = tokenizer()
    made.chat_template = made.chat_template + THINKING
    with pytest.raises(BadInput, match="--template-args: ") as refused:
        Prompter(made, template, variables=variables)
    assert word in str(refused.value)


def test_ends_of_the_command_line():
    """They stand beside those that are known, and with ignore_eos alone."""
    flags = {"stop_ids": [50, 60], "stop_strings": ["###", "\n\n"]}
    rules = Prompter(tokenizer(), **flags).stop_rules(config(7))
    assert rules.eos_ids == {1, 7, 50, 60} and rules.strings == ("###", "\n\n")
    rules = Prompter(tokenizer(), "zero_shot", **flags).stop_rules(config(7))
    assert rules.strings == ("###", "\n\n")
    rules = Prompter(tokenizer(), "zero_shot", **flags, ignore_eos=True).stop_rules(config(7))
    assert rules.eos_ids == {50, 60} and rules.strings == ("###", "\n\n")
    rules = Prompter(tokenizer(), "aquila-chat", ignore_eos=True).stop_rules(config(7))
    assert rules.eos_ids == set() and rules.strings == ()
    assert rules.cut([5, 1, 7], 3, 100) == (3, "")


def test_a_stop_text_is_cut_from_the_answer():
    prompter = Prompter(tokenizer(), stop_strings=["\nUser:"])
    rules = prompter.stop_rules(config(1))
    ids = prompter.tokenizer("Yes.\nUser: no", add_special_tokens=False).input_ids
    kept, reason = rules.cut(ids, len(ids), 100)
    assert (prompter.tokenizer.decode(ids[:kept]), reason) == ("Yes.\nUser:", "stop")
    assert prompter.text(ids[:kept], rules) == "Yes."


@pytest.mark.parametrize(
    "answer, strings, text",
    [
        ("a|b a|b", ("b a",), "a|"),
        ("x###", ("#",), "x"),
        ("x#", ("#", "##"), "x"),
        ("été##", ("##",), "été"),
        ("x</s>y xy", ("xy",), "xy"),  # the first x and y are no neighbours
        ("x</s>y", ("xy",), "xy"),
        ("one</s>", ("</s>",), "one"),
    ],
)
def test_text_is_cut_where_the_answer_ended(answer, strings, text):
    prompter = Prompter(tokenizer(), stop_strings=strings, ignore_eos=True)
    rules = prompter.stop_rules(None)
    ids = prompter.tokenizer(answer, add_special_tokens=False).input_ids
    kept, _ = rules.cut(ids, len(ids), 100)
    assert prompter.text(ids[:kept], rules) == text


def test_stop_ids_outside_the_vocabulary_are_refused():
    made = tokenizer()
    with pytest.raises(BadInput, match=f"--stop-token-ids {len(made)}: .* {len(made) - 1}"):
        Prompter(made, stop_ids=[1, len(made)])


def test_flags_and_metas_make_the_same_prompter():
    made, flags = tokenizer(), {"system_prompt": "Be brief.", "stop": ["###"], "ignore_eos": True}
    prompter = Prompter.of(made, None, {**flags, "stop_token_ids": [5], "template_args": None})
    assert prompter.render(TURNS, []) == Prompter(made, system="Be brief.").render(TURNS, [])
    rules = prompter.stop_rules(config(1))
    assert (rules.eos_ids, rules.strings) == ({5}, ("###",))
    older = Prompter.of(made, "plain", {})
    assert older.render(TURNS, []) == Prompter(made, "plain").render(TURNS, [])
    assert older.stop_rules(config(1)).eos_ids == {1}


# templates whose answers end with what no stop rule knows

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONCE = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML


def chatml(chat=CHATML, special=True):
    """A tokenizer with ChatML's tokens, as published: special ones, or merely added."""
    made = tokenizer()
    tokens = ["<|im_start|>", "<|im_end|>"]
    made.add_tokens(tokens, special_tokens=special)
    made.chat_template = chat
    return made, made.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("special", [True, False])
def test_an_answer_end_that_ends_nothing_is_told(special):
    made, end = chatml(special=special)
    prompter = Prompter(made)
    told = prompter.endless(prompter.stop_rules(config(1)))
    assert "'<|im_end|>'" in told and f"--stop-token-ids {end}" in told
    assert prompter.endless(prompter.stop_rules(config([1, end]))) is None
    for flags in ({"stop_ids": [end]}, {"stop_strings": ["<|im_end|>"]}, {"ignore_eos": True}):
        prompter = Prompter(made, **flags)
        assert prompter.endless(prompter.stop_rules(config(1))) is None, flags


def test_an_answer_end_is_looked_for_behind_the_answer_alone():
    """Not in the turns around it, nor where none can be seen."""
    made, end = chatml()
    quiet = [None, "plain", "vicuna_v1.1", "llama-2", "zero_shot"]
    for template in quiet:  # <s> and </s>, or lines of text
        prompter = Prompter(tokenizer(), template)
        assert prompter.endless(prompter.stop_rules(config(1))) is None, template
    for chat in (ONCE, "{% for m in messages %}{{ m.content }}\n{% endfor %}<|im_end|>"):
        made.chat_template = chat
        prompter = Prompter(made)
        assert prompter.endless(prompter.stop_rules(config(1))) is None, chat
    prompter = Prompter(made, "qwen-7b-chat")  # FastChat knows the ids of Qwen, not these
    assert f"--stop-token-ids {end}" in prompter.endless(prompter.stop_rules(config(1)))
