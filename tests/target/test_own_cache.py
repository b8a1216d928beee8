"""Targets on transformers' own cache: chains with rollback, encoder-decoder models, refusals."""

import functools
import json
import tempfile

import pytest
import torch
from answer_samples import report_of, run_tool
from conftest import make_tokenizer
from harness_runs import COMMON, answer, run
from tiny_methods import TINY_FLAGS, build, decode, transformers_ids

from model.common.contract.sequence import EmptyDrafter, PerSequence, SequenceDrafter
from model.common.errors import BadInput
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.loading import load_plain, load_target
from model.common.target.own_cache import EncoderDecoderTarget, OwnCacheTarget
from model.pld.drafter import PLDDrafter
from model.sps.drafter import SpSDrafter

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
BART = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 300}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 96}
FAMILIES = {
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "vocab_size": 300, "max_seq_len": 512},
    "codegen": {
        **{"n_embd": 64, "n_head": 4, "n_layer": 3, "rotary_dim": 8, "vocab_size": 300},
        **{"n_positions": 512, "n_ctx": 512},
    },
    "falcon": SIZES,
    "lfm2": {
        **SIZES,
        **{"num_key_value_heads": 2, "intermediate_size": 96},
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    | {"vocab_size": 300, "decoder_start_token_id": 0},
    "bart": {**BART, "encoder_ffn_dim": 96, "max_position_embeddings": 512},
}
LIMIT = 20
PROMPTS = [[7, 5, 9, 11, 5, 9], [20, 21, 22, 23] * 4, [40, 41]]


@functools.cache
def saved(family: str) -> str:
    """A tiny random model of each family, made once."""
    return save(family)


def save(family: str, **more) -> str:
    """A tiny random model with a tokenizer, as a directory; more: fields of its config."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    folder = tempfile.mkdtemp()
    given = {**FAMILIES[family], **more, "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(family, **given)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@functools.cache
def target(family: str):
    return load_target(saved(family), "float64", "cpu", "eager")


@functools.cache
def right(family: str) -> tuple:
    """transformers' own greedy answers to PROMPTS."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

    start = getattr(target(family), "start", None)
    kind = AutoModelForCausalLM if start is None else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(saved(family), dtype=torch.float64)
    model.generation_config = GenerationConfig(decoder_start_token_id=start, pad_token_id=0)
    answers = []
    for ids in PROMPTS:
        inputs, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
        given = {"attention_mask": mask, "max_new_tokens": LIMIT, "do_sample": False}
        output = model.generate(inputs, **given)[0]
        answers.append(output[len(ids) if start is None else 1 :].tolist())
    return tuple(map(tuple, answers))


class Oracle(SequenceDrafter):
    """Knows an answer; every draft of five is right for `sure` tokens and wrong then."""

    def __init__(self, answers, sure):
        self.answers, self.sure = answers, sure

    def start(self, ids):
        self.answer = next(a for p, a in zip(PROMPTS, self.answers) if p == ids[:-1])
        self.done = 1

    def observe(self, ids):
        self.done += len(ids)

    def propose(self):
        known = list(self.answer[self.done : self.done + 5])
        return known[: self.sure] + [(token + 1) % 300 for token in known[self.sure :]]


@pytest.mark.parametrize("family", FAMILIES)
def test_chains_give_the_ids_of_generate(family):
    """Whatever is refused, by rollback (plain layers) or by reading again (recurrent states)."""
    kind = EncoderDecoderTarget if family in ("t5", "bart") else OwnCacheTarget
    assert type(target(family)) is kind
    expected = [list(ids) for ids in right(family)]
    pld = PerSequence(lambda: PLDDrafter(3, 10), max_nodes=10)
    for drafter in (EmptyDrafter(), pld):
        assert decode(target(family), drafter, PROMPTS, StopRules(), LIMIT)[0] == expected
    for sure in (0, 2, 5):
        oracle = PerSequence(lambda sure=sure: Oracle(right(family), sure), max_nodes=5)
        ids, accepted = decode(target(family), oracle, PROMPTS, StopRules(), LIMIT)
        assert ids == expected
        assert all(set(lengths[:-1]) == {1 + sure} for lengths in accepted)


@pytest.mark.parametrize(
    "family, context",
    [("mpt", "max_seq_len"), ("codegen", "n_positions"), ("bart", "max_position_embeddings")],
)
def test_no_draft_is_read_beyond_the_context(family, context):
    """Tables of positions end there: drafts are cut, answers go on up to it."""
    small = load_target(save(family, **{context: 32}), "float64", "cpu", "eager")
    prompt = [20, 21, 22, 23] * 4
    most = 31 if family == "bart" else 32 - len(prompt)
    pld = PerSequence(lambda: PLDDrafter(3, 10), max_nodes=10)
    answers = []
    for drafter in (EmptyDrafter(), pld):
        answers += decode(small, drafter, [prompt], StopRules(), 100)[0]
    assert answers[0] == answers[1] and len(answers[0]) == most


def test_an_audit_knows_that_encoder_and_decoder_have_a_context_each(question_file, tmp_path):
    """A prompt and an answer that together are longer than it."""
    folder, out = save("bart", max_position_embeddings=48), tmp_path / "x.jsonl"
    flags = ["--question-ids", 12, "--temperature", 0.7, "--max-new-tokens", 47, "--ignore-eos"]
    (record,) = answer("vanilla", folder, question_file, out, *flags)
    (choice,) = record["choices"]
    assert choice["prompt_tokens"][0] + choice["new_tokens"][0] > 48
    audit = run_tool("evaluation/audit_sampling.py", out, "--device", "cpu", "--num-threads", 1)
    assert audit.returncode == 0, audit.stderr
    assert report_of(audit)["results"][0]["verdict"] == "CONSISTENT"


@pytest.mark.parametrize(
    "family, context, of_target",
    [("codegen", "n_positions", "falcon"), ("bart", "max_position_embeddings", "bart")],
)
def test_a_draft_model_drafts_as_far_as_its_context_goes(family, context, of_target):
    """Tables of positions end there. Of the second prompt it drafts nothing at all."""
    small = load_target(save(family, **{context: 32}), "float64", "cpu", "eager")
    sps = SpSDrafter(small, target(of_target), "constant", 3, 0.3)
    for prompt in (PROMPTS[1], PROMPTS[1] * 3):
        wanted, found = (
            generate(target(of_target), drafter, [prompt], Sampler(), [0], StopRules(), 40)[0]
            for drafter in (EmptyDrafter(), sps)
        )
        assert found.output_ids == wanted.output_ids and len(found.output_ids) == 40
        length, drafts = len(prompt) + 1, prompt is PROMPTS[1]
        end = 32 + (len(prompt) - 1 if family == "bart" else 0)
        for committed, drafted in zip(found.accept_lengths, found.drafted):
            assert drafted == (min(3, max(end - length - 1, 0)) if drafts else 0)
            length += committed


def test_longrope_on_transformers_own_cache():
    """A draft beyond the boundary changes nothing; a prompt beyond it has the long factors."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8}
    rope |= {"long_factor": [3.0] * 8, "original_max_position_embeddings": 64}
    folder = save("falcon", rope_parameters=rope, original_max_position_embeddings=64)
    own = load_target(folder, "float64", "cpu", "eager")
    plain = load_plain(folder, "float64", "cpu")
    assert (own.rope.boundary, plain.rope.boundary) == (64, 64)
    plain.rope.remove()
    prompts = [[7, 5, 9] * 14, [7, 5, 9] * 24]
    expected = transformers_ids(plain.model, prompts, LIMIT)
    pld = PerSequence(lambda: PLDDrafter(3, 10), max_nodes=10)
    for drafter in (EmptyDrafter(), pld):
        assert decode(own, drafter, prompts, StopRules(), LIMIT)[0] == expected


@pytest.fixture(scope="module")
def deep():
    """(folder, target, its answers) of an LFM2 of eight layers, for heads that read three."""
    folder = save("lfm2", num_hidden_layers=8, layer_types=["conv", "full_attention"] * 4)
    loaded = load_target(folder, "float64", "cpu", "eager")
    plain = load_plain(folder, "float64", "cpu").model
    return folder, loaded, transformers_ids(plain, PROMPTS, LIMIT)


@pytest.mark.parametrize("method", ["nasd", "suffix", "peagle", "dflash", "dspark"])
def test_chains_of_methods_give_the_ids_of_generate(method, deep):
    """Heads read the states of such a target, too; recurrent states are read again."""
    folder, loaded, expected = deep
    flags = TINY_FLAGS.get(method, lambda paths: [])({"target": folder})
    drafter = build(method, folder, loaded, flags)
    assert decode(loaded, drafter, PROMPTS, StopRules(), LIMIT)[0] == expected


@pytest.mark.parametrize("family", ["mpt", "lfm2", "t5"])
def test_sps_with_the_target_as_its_draft_model_is_accepted_whole(family):
    """The draft model reads its last two tokens again; behind a decoder's start token as well."""
    draft = load_target(saved(family), "float64", "cpu", "eager")
    drafter = SpSDrafter(draft, target(family), "constant", 3, 0.3)
    ids, accepted = decode(target(family), drafter, PROMPTS, StopRules(), LIMIT)
    assert ids == [list(answer) for answer in right(family)]
    assert all(set(lengths[:-1]) == {4} for lengths in accepted)


@pytest.mark.parametrize("family", ["codegen", "mpt", "t5"])
def test_engine_hf_is_transformers_own_generate(family, question_file, tmp_path):
    """On the attention and cache that transformers chooses, and beside it the loop's answers."""
    files = {}
    for engine in ("hf", "loop"):
        out = tmp_path / f"{engine}.jsonl"
        flags = ("--engine", engine)
        files[engine] = answer("vanilla", saved(family), question_file, out, *flags)
    texts = [
        [choice["turns"] for line in found for choice in line["choices"]]
        for found in files.values()
    ]
    assert texts[0] == texts[1] and any(texts[0])
    meta = json.loads((tmp_path / "hf.meta.json").read_text())
    assert meta["step_reads"] == {"no_bound": "the model keeps a cache of its own"}


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--batch-size", "2"], "--batch-size must be 1"),
        (["--runtime", "compile"], "needs --runtime eager"),
    ],
)
def test_what_it_cannot_do_is_one_line(flags, reason, question_file, tmp_path, capsys):
    where = ["--model-path", saved("mpt"), "--question-file", question_file]
    assert run("pld", *where, "--answer-file", tmp_path / "x.jsonl", *COMMON, *flags) == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_trees_are_refused_before_the_run(question_file, tmp_path, capsys):
    where = ["--model-path", saved("t5"), "--question-file", question_file]
    assert run("recycling", *where, "--answer-file", tmp_path / "x.jsonl", *COMMON) == 2
    assert "can only read chains, not this method's trees" in capsys.readouterr().err
    with pytest.raises(BadInput, match="one question at a time"):
        target("t5").reserve(2, 10)


def test_a_draft_model_of_chains_is_refused_where_trees_are_read(paths, tmp_path, capsys):
    """specexec reads trees with its draft model; sps in two slots reads two sequences."""
    files = ["--model-path", paths["model"], "--drafter-path", saved("mpt")]
    files += ["--question-file", paths["questions"], "--answer-file", tmp_path / "x.jsonl"]
    assert run("specexec", *files, *COMMON) == 2
    assert "can only read chains" in capsys.readouterr().err
    assert run("sps", *files, *COMMON, "--batch-size", "2") == 2
    assert "one question at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    "family, flags",
    [
        ("mpt", ["--repetition-penalty", 1.3, "--frequency-penalty", 0.4]),
        ("t5", ["--presence-penalty", 0.5, "--frequency-penalty", 0.4]),
    ],
)
def test_penalties_are_those_of_generate(family, flags, question_file, tmp_path):
    """Also on chains of PLD; an encoder-decoder's answer does not begin with its prompt."""
    found = []
    for name, method, more in (
        ("plain", "vanilla", []),
        ("hf", "vanilla", [*flags, "--engine", "hf"]),
        ("loop", "vanilla", flags),
        ("pld", "pld", flags),
    ):
        records = answer(method, saved(family), question_file, tmp_path / f"{name}.jsonl", *more)
        found.append([choice["output_ids"] for line in records for choice in line["choices"]])
    assert found[0] != found[1] == found[2] == found[3]


def test_an_encoders_prompt_is_nothing_to_repeat(question_file, tmp_path, capsys):
    where = ["--model-path", saved("t5"), "--question-file", question_file]
    where += ["--answer-file", tmp_path / "x.jsonl", *COMMON]
    assert run("vanilla", *where, "--repetition-penalty", 1.2) == 2
    assert "--repetition-penalty" in capsys.readouterr().err
