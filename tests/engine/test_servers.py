"""What vLLM, SGLang, llama.cpp and others send, in answer files (recorded exchanges)."""

import copy
import json

import pytest
from harness_runs import messages, read_meta
from replay_server import EXCHANGES, replaying
from served_runs import MINI, QUESTIONS, answers, run

from evaluation.answers.reader import read_answers
from model.common.prompts.prompter import Prompter, load_tokenizer

IDS = [51, 704, 77, 378, 274, 1329, 346, 1341, 295, 273, 286, 77, 82, 140, 115, 26, 1]
TEXT = "Greta found a talking cat in the café."
STEPS = [3, 1, 4, 2, 5, 1]
REUSE = "nothing tells this server not to reuse prompts of earlier requests"


def exchange(name):
    """The content of a recorded exchange, to be changed."""
    return json.loads((EXCHANGES / f"{name}.json").read_text(encoding="utf-8"))


def prompt_ids(question):
    """As the harness renders it."""
    return Prompter(load_tokenizer(MINI)).render(question["turns"], [])


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp"])
def test_ids_times_and_accept_lengths(name, tmp_path):
    records, asked = answers(name, tmp_path)
    assert [record["question_id"] for record in records] == [1, 2, 3]
    for record, question in zip(records, QUESTIONS):
        (choice,) = record["choices"]
        assert choice["output_ids"] == [IDS] and choice["turns"] == [TEXT]
        assert choice["accept_lengths"] == STEPS and choice["decoding_steps"] == [6]
        assert choice["new_tokens"] == [17] and choice["finish_reason"] == ["stop"]
        assert choice["prompt_tokens"] == [len(prompt_ids(question))]
        assert choice["chunk_tokens"] == [[1, *STEPS]]  # llama.cpp: several events a step
        ends = choice["chunk_end_s"][0]
        assert len(ends) == len(choice["chunk_tokens"][0]) - 1 and ends == sorted(ends)
        assert choice["prefill_s"][0] <= ends[0] and ends[-1] <= choice["wall_time"][0]
    prompts = [body["prompt"] for _, body in asked]
    assert prompts == [prompt_ids(q) for q in (QUESTIONS[0], *QUESTIONS)]  # the first is the probe
    assert read_answers(tmp_path / "a.jsonl").warnings == []


def test_the_witnesses_of_each_server(tmp_path):
    found = {}
    for name in ("vllm", "sglang", "llamacpp"):
        folder = tmp_path / name
        folder.mkdir()
        records, _ = answers(name, folder)
        found[name] = [record["choices"][0]["accept_evidence"] for record in records]
    vllm = {"source": "per_step", "checked": ["summary", "usage", "counters"], "disagree": None}
    summary = {"source": "summary", "checked": ["usage"], "disagree": None}
    assert found == {"vllm": [vllm] * 3, "sglang": [summary] * 3, "llamacpp": [summary] * 3}


def test_drafts_of_every_step(tmp_path):
    records, _ = answers("vllm", tmp_path)
    assert records[0]["choices"][0]["drafted"] == [[4, 0, 4, 4, 4, 4]]
    facts = read_meta(tmp_path / "a.jsonl")["method_facts"]
    assert facts["server_counted"] == {"tokens": 51, "accepted": 36, "steps": 15, "longest": None}


def test_a_meta_names_the_server(tmp_path):
    answers("sglang", tmp_path)
    meta = read_meta(tmp_path / "a.jsonl")
    assert meta["method"] == "engine" and meta["shared"]["runtime"] == "server"
    engine = meta["shared"]["engine"]
    assert (engine["name"], engine["version"], engine["host"]) == ("sglang", "0.5.9", "127.0.0.1")
    assert '"speculative_algorithm": "EAGLE3"' in meta["method_args"]["speculation"]
    assert meta["model_id"] == "target-sglang-eagle3-float32-temperature-0.0"
    assert meta["shared"]["device"] is None and meta["shared"]["torch"] is None


def test_events_of_several_steps_and_characters_in_parts(tmp_path):
    """Writes of seven bytes cut events, lines and letters; two events made one hold two steps."""
    said = exchange("vllm")
    events = said["answers"][0]["events"]
    first, second = events[2:4]
    second["choices"][0]["text"] = first["choices"][0]["text"] + second["choices"][0]["text"]
    second["choices"][0]["token_ids"] = [*IDS[4:5], *IDS[5:9]]
    said["answers"] = [{"events": [{"split": 7}, *events[:2], *events[3:]]}]
    records, _ = answers(said, tmp_path)
    (choice,) = records[0]["choices"]
    assert choice["output_ids"] == [IDS] and choice["turns"] == [TEXT]
    assert choice["chunk_tokens"] == [[1, 3, 5, 2, 5, 1]]
    assert sorted(choice["accept_lengths"]) == sorted(STEPS) and choice["decoding_steps"] == [6]
    assert choice["accept_evidence"]["source"] == "per_step"


def test_totals_alone_say_the_number_of_steps(tmp_path):
    """SGLang's stream in one event (--stream-interval): how many steps, but not what each made."""
    said = exchange("sglang")
    events = said["answers"][0]["events"]
    last = next(event for event in events if event["choices"][0]["finish_reason"])
    last["choices"][0] |= {"text": TEXT[1:], "token_ids": IDS[1:]}
    said["answers"] = [{"events": [events[0], last, *events[7:]]}]
    records, _ = answers(said, tmp_path)
    (choice,) = records[0]["choices"]
    assert choice["chunk_tokens"] == [[1, 16]] and choice["output_ids"] == [IDS]
    assert choice["decoding_steps"] == [6] and "accept_lengths" not in choice
    assert choice["accept_evidence"] == {"source": "summary", "checked": [], "disagree": None}
    (question, *_) = read_answers(tmp_path / "a.jsonl").questions.values()
    assert question.choices[0].accepted == (16, 6)


def test_tokens_held_back_leave_no_ids(tmp_path):
    """llama.cpp never sends the first tokens of a character: the text is whole, the ids are not."""
    said = exchange("llamacpp")
    events = said["answers"][0]["events"]
    held = next(n for n, event in enumerate(events) if event["tokens"] == [140])
    events[held + 1]["content"] = "é"
    del events[held]
    records, _ = answers(said, tmp_path)
    (choice,) = records[0]["choices"]
    assert "output_ids" not in choice and choice["turns"] == [TEXT]
    assert choice["new_tokens"] == [17] and choice["accept_lengths"] == STEPS
    answers_file = read_answers(tmp_path / "a.jsonl")
    assert answers_file.warnings and "own counts" in answers_file.warnings[0]


def test_chat_without_ids(tmp_path):
    """OpenAI's interface: no ids, no counts within the stream, the server's own template."""
    records, asked = answers("chat", tmp_path)
    paths = [path for path, _ in asked]
    assert paths[:2] == ["/v1/completions"] * 2 and set(paths[2:]) == {"/v1/chat/completions"}
    assert "return_token_ids" in asked[2][1] and "return_token_ids" not in asked[3][1]
    assert asked[-1][1]["messages"] == [{"role": "user", "content": QUESTIONS[2]["turns"][0]}]
    (choice,) = records[0]["choices"]
    assert "output_ids" not in choice and choice["turns"] == [TEXT]
    assert choice["new_tokens"] == [17] and choice["prompt_tokens"] == [21]
    assert choice["chunk_tokens_estimated"] and sum(choice["chunk_tokens"][0]) == 17
    assert choice["accept_evidence"] is None and "accept_lengths" not in choice
    engine = read_meta(tmp_path / "a.jsonl")["shared"]["engine"]
    assert engine["interface"] == "chat, OpenAI's fields" and engine["version"] is None
    assert engine["prompt_cache"] == "unknown"


@pytest.mark.parametrize("flag, value", [("--min-p", 0.1), ("--top-k", 4), ("--ignore-eos", None)])
def test_a_server_that_passes_over_fields_is_not_asked_by_them(flag, value, tmp_path, capfd):
    flags = ["--temperature", 1, flag, *([] if value is None else [value])]
    with replaying("chat") as server:
        assert run(server.url, tmp_path, *flags) == 2
    assert f"{flag}: this server takes OpenAI's own fields alone" in capfd.readouterr().err


def test_witnesses_that_disagree_leave_no_accept_lengths(tmp_path):
    said = exchange("vllm")
    counted = copy.deepcopy(said["counters"])
    counted["accepted"] = [f"{11.0 * n}" for n in range(9)]
    records, _ = answers(said, tmp_path, counters=counted)
    (choice,) = records[0]["choices"]
    assert "accept_lengths" not in choice and "drafted" not in choice
    assert choice["accept_evidence"]["disagree"] == (
        "per_step: 12 drafted tokens accepted in 5 steps;"
        " counters: 11 drafted tokens accepted in 5 steps"
    )
    (warning,) = read_answers(tmp_path / "a.jsonl").warnings
    assert "accept lengths of 3 answers are unknown" in warning


def test_counters_of_others_are_no_witness(tmp_path):
    said = exchange("vllm")
    said["counters"]["tokens"] = [f"{30.0 * n}" for n in range(9)]
    records, _ = answers(said, tmp_path)
    assert records[0]["choices"][0]["accept_evidence"]["checked"] == ["summary", "usage"]


def test_ids_behind_an_end_are_cut(tmp_path):
    """A server's end tokens may be others than ours: ids, times and steps end at ours."""
    records, _ = answers("vllm", tmp_path, "--stop-token-ids", 295)
    (choice,) = records[0]["choices"]
    assert choice["output_ids"] == [IDS[:9]] and choice["chunk_tokens"] == [[1, 3, 1, 4]]
    assert choice["finish_reason"] == ["stop"] and len(choice["chunk_end_s"][0]) == 3
    assert choice["wall_time"][0] == choice["chunk_end_s"][0][-1]


def test_several_turns_and_choices(tmp_path):
    questions = [{"question_id": 7, "category": "qa", "turns": ["Who?", "And why?"]}]
    records, asked = answers("vllm", tmp_path, "--num-choices", 2, questions=questions)
    (record,) = records
    assert [choice["index"] for choice in record["choices"]] == [0, 1]
    for choice in record["choices"]:
        assert choice["output_ids"] == [IDS, IDS] and choice["accept_lengths"] == STEPS * 2
        assert choice["prompt_tokens"][1] > choice["prompt_tokens"][0]
    assert asked[-1][1]["prompt"][-20:] != asked[-2][1]["prompt"][-20:]


def test_what_a_request_asks_for(tmp_path):
    flags = ["--temperature", 0.7, "--top-p", 0.9, "--top-k", 5, "--min-p", 0.1, "--seed", 3]
    flags += ["--repetition-penalty", 1.1, "--stop", "END", "--extra-body", '{"priority": 1}']
    _, asked = answers("vllm", tmp_path, *flags)
    body = asked[-1][1]
    wanted = {"model": "mini", "stream": True, "max_tokens": 24, "temperature": 0.7, "top_p": 0.9}
    wanted |= {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "stop": ["END"], "priority": 1}
    wanted |= {"stop_token_ids": [1], "return_token_ids": True, "ignore_eos": False}
    assert {name: body[name] for name in wanted} == wanted
    assert len({body["cache_salt"] for _, body in asked}) == len(asked)
    seeds = [body["seed"] for _, body in asked[1:]]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_llama_cpp_refuses_what_it_cannot_do(tmp_path, capfd):
    with replaying("llamacpp") as server:
        assert run(server.url, tmp_path, "--presence-penalty", 0.5) == 2
    assert (
        "--presence-penalty: llama.cpp's counts the prompt's tokens too" in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    "name, flags, recorded",
    [
        ("vllm", [], False),
        ("sglang", [], False),
        ("llamacpp", [], False),
        ("chat", [], "unknown"),
        ("chat", ["--prompt-cache"], True),
    ],
)
def test_what_cannot_be_asked_is_not_recorded_as_kept(name, flags, recorded, tmp_path, capfd):
    answers(name, tmp_path, *flags)
    assert read_meta(tmp_path / "a.jsonl")["shared"]["engine"]["prompt_cache"] == recorded
    assert any(REUSE in line for line in messages(capfd)) == (recorded == "unknown")


def test_another_servers_salts_are_not_relied_on(tmp_path):
    """It takes our fields, and nobody knows what it makes of them."""
    said = exchange("vllm")
    said["get"]["/v1/models"]["data"][0]["owned_by"] = "someone"
    answers(said, tmp_path)
    assert read_meta(tmp_path / "a.jsonl")["shared"]["engine"]["prompt_cache"] == "unknown"


def test_reused_prompts_are_counted(tmp_path, capfd):
    said = exchange("vllm")
    said["answers"][0]["events"][-2]["usage"]["prompt_tokens_details"] = {"cached_tokens": 16}
    answers(said, tmp_path)
    assert read_meta(tmp_path / "a.jsonl")["method_facts"]["cached_tokens"] == 48
    line = "48 tokens of prompts were taken from earlier requests"
    assert line in messages(capfd)
    answers(said, tmp_path, "--prompt-cache", "--overwrite")
    assert read_meta(tmp_path / "a.jsonl")["method_facts"]["cached_tokens"] == 48
    assert line not in messages(capfd)


def test_nothing_reused_and_nothing_said_are_not_the_same(tmp_path):
    for name, counted in (("llamacpp", 0), ("vllm", None)):
        answers(name, tmp_path, "--overwrite")
        assert read_meta(tmp_path / "a.jsonl")["method_facts"].get("cached_tokens") == counted
