"""Tiny random models of several families, a tokenizer and a question file, made once a run."""

import importlib.util
import json
import os
import shutil

import pytest
import setuptools  # noqa: F401  Inductor imports it, which fails behind an import of distutils
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may be downloaded
torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 12},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


def pytest_collection_modifyitems(items):
    """Tests skip themselves where what their mark needs is not there."""
    missing = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "compiled": None if shutil.which("gcc") else "torch.compile needs a C compiler",
        "ray": None if importlib.util.find_spec("ray") else "no Ray",
    }
    for item in items:
        for mark, reason in missing.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def make_model(family="llama", seed=0, scale=0.15, dtype=torch.float32, **shape):
    """A random model with logits spread far enough for float32 argmaxes to be safe."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from model.common.target.attention import NAME, register

    register()
    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES.get(family, {}), **shape})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.set_attn_implementation(NAME)
    return model.to(dtype)


def make_prompts(num=4, seed=0, vocab_size=97):
    """Ragged prompts of random ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [5, 19, 33, 11, 2, 64][:num]
    return [torch.randint(1, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def make_tokenizer(words=(), letters=None):
    """A byte-level tokenizer with <s>, </s> and a chat template; words are tokens of their own.

    letters: the only bytes that it knows, None = all; it drops others.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = letters or sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, *words])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


def save_model(path, family="llama", seed=0, scale=0.15, words=(), **shape):
    """A model directory as transformers writes it: weights, config, tokenizer."""
    tokenizer = make_tokenizer(words)
    model = make_model(family, seed, scale, vocab_size=len(tokenizer), **shape)
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def fresh_process(request):
    """What runtimes keep for a process: lines said once, and graphs, of which it has a limit.

    Beyond the limit torch.compile runs eager code, and a test would see no graph at all.
    """
    from model.common.target.products import Chosen, Turned
    from model.common.target.runtime import told

    told.clear()
    Chosen.turned_rows = Turned(1, 4, 3)  # all forms, whatever this machine would choose
    if request.node.get_closest_marker("compiled"):
        torch.compiler.reset()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A tiny Llama checkpoint directory."""
    return save_model(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="session")
def draft_dir(tmp_path_factory):
    """A smaller one with the same tokenizer."""
    return save_model(tmp_path_factory.mktemp("draft"), seed=1, num_hidden_layers=1)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    """A directory with the tokenizer of these models, and a config of none."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


@pytest.fixture(scope="session")
def question_file(tmp_path_factory):
    """Six short questions in six categories, the first of two turns."""
    categories = ["writing", "translation", "summarization", "qa", "math_reasoning", "rag"]
    path = tmp_path_factory.mktemp("bench") / "question.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for i, category in enumerate(categories):
            turns = [f"Question {i}: abcab {i * 7}?"] + (["And shorter?"] if i == 0 else [])
            question = {"question_id": 11 + i, "category": category, "turns": turns}
            out.write(json.dumps(question) + "\n")
    return str(path)


@pytest.fixture
def paths(model_dir, draft_dir, question_file, tmp_path):
    """Names that the flags of commands are filled with."""
    return {"model": model_dir, "draft": draft_dir, "questions": question_file, "tmp": tmp_path}
