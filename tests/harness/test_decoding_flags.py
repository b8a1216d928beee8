"""Flags of decoding, prompts and ends through a method's command: their effect and their record."""

import json
import shutil

import pytest
from harness_runs import answer, ids_of, messages, read, read_meta, refusal, refused, run

from evaluation.answers.meta import AnswerError, check_shared
from evaluation.answers.reader import read_answers

PENALTIES = ["--repetition-penalty", 1.2, "--presence-penalty", 0.3, "--frequency-penalty", 0.2]
RECORDED = {
    "--min-p": (0.1, "min_p", 0.1),
    "--repetition-penalty": (1.2, "repetition_penalty", 1.2),
    "--presence-penalty": (-0.5, "presence_penalty", -0.5),
    "--frequency-penalty": (0.2, "frequency_penalty", 0.2),
    "--system-prompt": ("-Be brief.", "system_prompt", "-Be brief."),
    "--template-args": ('{"messages_end": 1}', "template_args", {"messages_end": 1}),
    "--stop": ("q", "stop", ["q"]),
    "--stop-token-ids": ("40,41", "stop_token_ids", [40, 41]),
    "--ignore-eos": (None, "ignore_eos", True),
}


@pytest.fixture(scope="module")
def spoken_dir(model_dir, tmp_path_factory):
    """The tiny target, whose chat template has a variable."""
    return edited(model_dir, tmp_path_factory.mktemp("spoken") / "m", "{{ messages_end }}")


def edited(model_dir, folder, more):
    """A copy of a model with something more in its chat template."""
    shutil.copytree(model_dir, folder)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8") + more, encoding="utf-8")
    return folder


@pytest.mark.parametrize("flag", RECORDED)
def test_flags_are_recorded_and_make_another_run(
    capfd, paths, spoken_dir, question_file, tmp_path, flag
):
    """Of a file with them, one without is no continuation, and no baseline."""
    value, name, recorded = RECORDED[flag]
    given = [flag] if value is None else [f"{flag}={value}"]
    warm = ["--temperature", 1] if flag == "--min-p" else []
    with_flag, without = tmp_path / "with.jsonl", tmp_path / "without.jsonl"
    more = ["--question-ids", "12", *warm]
    answer("pld", spoken_dir, question_file, with_flag, *more, *given)
    answer("pld", spoken_dir, question_file, without, *more)
    assert read_meta(with_flag)["shared"][name] == recorded
    assert read_meta(with_flag)["method_args"].keys() == read_meta(without)["method_args"].keys()
    assert read_meta(without)["shared"][name] is None
    answer("pld", spoken_dir, question_file, with_flag, *more, *given)  # goes on
    flags = ["--model-path", spoken_dir, "--answer-file", with_flag, "--max-new-tokens", 24, *more]
    assert name in refused(capfd, paths, *flags)
    with pytest.raises(AnswerError, match=name):
        check_shared(read_answers(with_flag), read_answers(without))


def test_penalties_and_min_p_change_answers_alike(model_dir, question_file, tmp_path):
    """Greedy and sampled; a list method commits the baseline's ids, in any number of slots."""
    for warm in ([], ["--temperature", 1, "--min-p", 0.05]):
        folder = tmp_path / f"t{len(warm)}"
        flags = [*warm, *PENALTIES]
        base = answer("vanilla", model_dir, question_file, folder / "v.jsonl", *flags)
        own = answer("pld", model_dir, question_file, folder / "p.jsonl", *flags)
        three = answer(
            "pld", model_dir, question_file, folder / "b.jsonl", *flags, "--batch-size", 3
        )
        plain = answer("vanilla", model_dir, question_file, folder / "plain.jsonl", *warm)
        assert ids_of(base) == ids_of(own) == ids_of(three) != ids_of(plain)


def test_engine_hf_penalises_and_cuts_alike(model_dir, question_file, tmp_path):
    """Greedy ids under penalties; with min-p 1 a draw leaves the best token alone."""
    for name, warm in (("greedy", []), ("sampled", ["--temperature", 1, "--min-p", 1])):
        flags = [*PENALTIES, *warm, "--ignore-eos", "--stop", "q"]
        ours = answer("vanilla", model_dir, question_file, tmp_path / f"{name}.jsonl", *flags)
        flags += ["--engine", "hf"]
        theirs = answer("vanilla", model_dir, question_file, tmp_path / f"{name}-hf.jsonl", *flags)
        assert ids_of(ours) == ids_of(theirs)


def test_ignore_eos_runs_to_the_limit(model_dir, question_file, tmp_path):
    """An end that the target gives is gone over; ends of the command line are kept."""
    usual = answer("pld", model_dir, question_file, tmp_path / "a.jsonl")
    ids = [ids for record in usual for ids in record["choices"][0]["output_ids"]]
    sign = ids[0][3]  # made the model's end, so that some answers stop there
    model = shutil.copytree(model_dir, tmp_path / "m")
    config = model / "generation_config.json"
    content = json.loads(config.read_text()) | {"eos_token_id": [sign]}
    config.write_text(json.dumps(content))
    short = answer("pld", model, question_file, tmp_path / "b.jsonl")
    assert short[0]["choices"][0]["finish_reason"][0] == "stop"
    whole = answer("pld", model, question_file, tmp_path / "c.jsonl", "--ignore-eos")
    for record in whole:
        assert set(record["choices"][0]["finish_reason"]) == {"length"}
        assert set(record["choices"][0]["new_tokens"]) == {24}
    flags = ["--ignore-eos", "--stop-token-ids", sign]
    asked = answer("pld", model, question_file, tmp_path / "d.jsonl", *flags)
    assert ids_of(asked) == ids_of(short)


def test_a_stop_text_ends_and_is_cut(model_dir, question_file, tmp_path):
    usual = answer("pld", model_dir, question_file, tmp_path / "a.jsonl")
    text = usual[5]["choices"][0]["turns"][0]
    sign = next(c for c in text[3:] if c.isascii() and c.isprintable() and c != " ")
    (record,) = answer(
        "pld", model_dir, question_file, tmp_path / "b.jsonl", "--question-ids", 16, "--stop", sign
    )
    (choice,) = record["choices"]
    assert choice["finish_reason"] == ["stop"] and choice["new_tokens"][0] < 24
    assert choice["turns"] == [text.split(sign)[0].strip()]


def test_answers_that_may_run_on_are_told_once(model_dir, question_file, tmp_path, capfd):
    """A template that ends answers with what is no stop token."""
    from model.common.prompts.prompter import load_tokenizer

    model = shutil.copytree(model_dir, tmp_path / "m")
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "<s|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s|>"]})
    tokenizer.chat_template += "{# <s|> #}"
    tokenizer.save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer) - 1  # its id has no logit: nobody can say it
    answer("pld", model, question_file, tmp_path / "a.jsonl", "--question-ids", 12)
    (line,) = messages(capfd)
    assert line.startswith("warning: the template tokenizer ends answers with '<s|>'")
    assert f"--stop-token-ids {len(tokenizer) - 1}" in line
    for flags in (["--stop-token-ids", len(tokenizer) - 1], ["--ignore-eos"]):
        out = tmp_path / f"b{len(flags)}.jsonl"
        answer("pld", model, question_file, out, "--question-ids", 12, *flags)
        assert messages(capfd) == []


# code of a checkpoint

CONFIG = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODEL = """
from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(model_dir, tmp_path, monkeypatch):
    """The tiny target as a class of its own checkpoint."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    folder = shutil.copytree(model_dir, tmp_path / "own")
    (folder / "configuration_own.py").write_text(CONFIG, encoding="utf-8")
    (folder / "modeling_own.py").write_text(MODEL, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    names = {"AutoConfig": "configuration_own.OwnConfig"}
    names["AutoModelForCausalLM"] = "modeling_own.OwnForCausalLM"
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    return folder


def test_code_of_a_checkpoint_runs_where_it_is_trusted(
    own_code, model_dir, question_file, tmp_path, capfd
):
    """The same weights give the same answers; without the flag one line names it."""
    out = tmp_path / "a.jsonl"
    flags = ["--model-path", own_code, "--question-file", question_file, "--answer-file", out]
    line = refusal(capfd, run("pld", *flags, "--device", "cpu"))
    assert str(own_code) in line and "--trust-remote-code" in line
    own = answer("pld", own_code, question_file, out, "--trust-remote-code")
    assert read_meta(out)["shared"]["trust_remote_code"] is True
    assert ids_of(own) == ids_of(answer("pld", model_dir, question_file, tmp_path / "b.jsonl"))
    line = refusal(capfd, run("pld", *flags, "--device", "cpu", "--overwrite"))
    assert "--trust-remote-code" in line  # an earlier run's permission is not this one's
    assert read(out) == own
    draft = ["--drafter-path", own_code]
    assert "--trust-remote-code" in refused(
        capfd,
        {"model": model_dir, "questions": question_file, "tmp": tmp_path / "c"},
        *draft,
        method="sps",
    )


def test_help_says_what_the_flags_mean(capfd):
    assert run("pld", "--help") == 0
    told = " ".join(capfd.readouterr().out.split())
    for words in ("on this machine, as you", "subtracted as many times", "share of the best"):
        assert words in told
    for words in ("0 is greedy (default: 0.0)", "per turn (tokens) (default: 1024)"):
        assert words in told
    assert "(default: None)" not in told and "(default: False)" not in told
