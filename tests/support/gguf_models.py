"""Tiny GGUF files, as llama.cpp's converter writes them, real ones, and transformers' answers."""

import importlib
import importlib.metadata
import os
from pathlib import Path

import pytest

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
WORDS = ("ab", "ca")
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def vocabulary():
    """Every byte, two special tokens before them and two merges behind."""
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<s>", "</s>", *sorted(ByteLevel.alphabet()), *WORDS]


def write_gguf(path, model, tokens, architecture="llama", values=None, tensors=None):
    """Write a Llama of conftest.make_model() in float32, with a byte-level tokenizer.

    tokens  its vocabulary, "<s>" and "</s>" first; of the others pairs of letters are merges
    values  {key of the architecture: number or text} beside the usual ones; tensors {name: array}
    """
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (values or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(f"{architecture}.{key}", value)
    _add_tokenizer(writer, tokens)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            writer.add_tensor(gguf_name(name), stored(name, tensor, config))
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer, tokens) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))  # 3: control
    pairs = [" ".join(token) for token in tokens[2:] if len(token) == 2]
    writer.add_token_merges(pairs)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)


def gguf_name(name: str) -> str:
    """model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight"""
    if name in NAMES:
        return NAMES[name]
    layer, part = name.removeprefix("model.layers.").split(".", 1)
    module, kind = part.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[module]}.{kind}"


def stored(name: str, tensor, config):
    """The array of a tensor: rows of q and k by pairs that rotate together, as llama.cpp has them.

    Example: a head of 4 rows a b c d, whose pairs are a c and b d, is stored as a c b d.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    num_heads = next((n for part, n in heads.items() if f"{part}." in name), None)
    if num_heads is not None:
        halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
        tensor = halves.transpose(1, 2).reshape(tensor.shape)
    return tensor.contiguous().numpy()


def published(package: str, folder: Path) -> Path:
    """The GGUF file of an installed package, joined in `folder` where it comes in parts.

    An environment variable of the package's name (SMOLLM2_GGUF, GEMMA3_GGUF) names a file instead;
    without both the test is skipped.
    """
    variable = f"{package.split('-')[1 if package.startswith('llm') else 0].upper()}_GGUF"
    if named := os.environ.get(variable):
        return Path(named)
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"neither the package {package} nor {variable}")
    found = [Path(file.locate()) for file in files if file.match("*.gguf")]
    if found:
        return found[0]
    return importlib.import_module(package.replace("-", "_")).assemble(folder / "joined.gguf")


def generated(model, ids, limit):
    """transformers' greedy answer on the same weights, with its own attention and cache."""
    import torch

    from model.common.target.attention import own_attention

    own_attention(model)
    tokens = torch.tensor([ids])
    out = model.generate(tokens, do_sample=False, max_new_tokens=limit, num_beams=1)
    return out[0, len(ids) :].tolist()
