"""MTP heads on disk: published layouts and sizes, what is refused, the order of what is read."""

import copy

import pytest
import torch
from mtp_checks import checkpoint, drafter_of, target_of
from mtp_dirs import head_dir, mtp_shapes
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from model.common.errors import BadInput
from model.common.heads.checkpoint import Checkpoint
from model.mtp.head import MtpModule, layer_config, load_mtp
from model.mtp.layouts import HeadFile, fill, find_head

EXPERTS = {"num_experts_per_tok": 8, "n_shared_experts": 1}
GLM = {"model_type": "glm4_moe", "num_attention_heads": 96, "num_key_value_heads": 8}
GLM |= {"head_dim": 128, "vocab_size": 151552, "attention_bias": True, **EXPERTS}
QWEN = {"vocab_size": 248320, "head_dim": 256}
PUBLISHED = {  # (layout, numbers of config.json, tensors, parameters without the copies)
    "DeepSeek-V3": (
        "deepseek",
        {
            **{"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61},
            **{"intermediate_size": 18432, "moe_intermediate_size": 2048, "vocab_size": 129280},
            **{"num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536},
            **{"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128},
            **{"v_head_dim": 128, "n_routed_experts": 256, **EXPERTS},
        },
        3 + 1 + 2 + 7 + 2 + 3 + 3 * 256 + 2,
        11_610_068_224,
    ),
    "GLM-4.5": (
        "deepseek",
        {
            **{**GLM, "hidden_size": 5120, "num_hidden_layers": 92, "intermediate_size": 12288},
            **{"moe_intermediate_size": 1536, "n_routed_experts": 160, "use_qk_norm": True},
        },
        3 + 1 + 2 + 9 + 2 + 3 + 3 * 160 + 2,
        None,
    ),
    "GLM-4.5-Air": (
        "deepseek",
        {
            **{**GLM, "hidden_size": 4096, "num_hidden_layers": 46, "intermediate_size": 10944},
            **{"moe_intermediate_size": 1408, "n_routed_experts": 128, "use_qk_norm": False},
        },
        3 + 1 + 2 + 7 + 2 + 3 + 3 * 128 + 2,
        None,
    ),
    "Qwen3-Next-80B-A3B": (
        "qwen",
        {
            **{"model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48},
            **{"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256},
            **{"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512},
            **{"intermediate_size": 5120, "num_experts": 512, "num_experts_per_tok": 10},
            **{"vocab_size": 151936},
        },
        4 + 2 + 6 + 1 + 4 + 3 * 512,
        None,
    ),
    "Qwen3.5-35B-A3B": (
        "qwen",
        {
            **{**QWEN, "model_type": "qwen3_5_moe_text", "hidden_size": 2048},
            **{"num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2},
            **{"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512},
            **{"num_experts": 256, "num_experts_per_tok": 8},
        },
        19,
        None,
    ),
    "Qwen3.5-9B": (
        "qwen",
        {
            **{**QWEN, "model_type": "qwen3_5_text", "hidden_size": 4096},
            **{"num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 4},
            **{"intermediate_size": 12288},
        },
        4 + 2 + 6 + 3,
        None,
    ),
    "MiMo-7B": (
        "mimo",
        {
            **{"model_type": "qwen2", "hidden_size": 4096, "num_hidden_layers": 36},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 11008},
            **{"vocab_size": 151680},
        },
        4 + 2 + 7 + 3,
        210_790_400,
    ),
    "mini": (
        "deepseek",
        {
            **{"model_type": "llama", "hidden_size": 192, "num_hidden_layers": 8},
            **{"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32},
            **{"intermediate_size": 512, "vocab_size": 2048},
        },
        4 + 2 + 4 + 3 + 2,
        467_904,
    ),
}


def stored(shapes: dict, layout: str, num_layers: int) -> HeadFile:
    """A head of these shapes as it is read, on the meta device."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found, prefix = find_head("PATH", list(tensors), num_layers)
    assert found.name == layout
    held = Checkpoint.__new__(Checkpoint)
    held.path, held.config, held.file, held.tensors = "PATH", {}, "PATH/FILE", tensors
    return HeadFile(held, found, prefix)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_load_on_the_meta_device(name):
    layout, config, num_tensors, num_parameters = PUBLISHED[name]
    shapes = mtp_shapes(config, layout)
    assert len(shapes) == num_tensors
    if name == "DeepSeek-V3":
        assert shapes["model.layers.61.eh_proj.weight"] == (7168, 14336)
        assert shapes["model.layers.61.shared_head.head.weight"] == (129280, 7168)
    shapes = mtp_shapes(config, layout, copies=False)
    if num_parameters:
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        assert sum(sizes) == num_parameters
    fields = {key: value for key, value in config.items() if key != "model_type"}
    target = AutoConfig.for_model(config["model_type"], **fields)
    with torch.device("meta"):
        module = MtpModule(layer_config(target), hidden_first=layout == "mimo")
    file = stored(shapes, layout, config["num_hidden_layers"])
    fill(file, module, torch.bfloat16, "meta")
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    assert sum(tensor.numel() for tensor in module.state_dict().values()) == sum(
        torch.Size(shape).numel() for shape in shapes.values()
    )
    biases = [n for n, t in module.state_dict().items() if t.dtype == torch.float32]
    assert all(bias.endswith("e_score_correction_bias") for bias in biases)


@pytest.mark.parametrize("name", ["DeepSeek-V3", "Qwen3.5-35B-A3B", "MiMo-7B"])
def test_every_tensor_is_needed_and_named(name):
    layout, config, *_ = PUBLISHED[name]
    fields = {key: value for key, value in config.items() if key != "model_type"}
    target = layer_config(AutoConfig.for_model(config["model_type"], **fields))
    whole = mtp_shapes(config, layout, copies=False)
    places = [n for n in whole if "experts." not in n or ".7." in n or "experts.down" in n]
    with torch.device("meta"):
        module = MtpModule(target)
    for place in places:
        shapes = {key: shape for key, shape in whole.items() if key != place}
        with pytest.raises(BadInput) as refused:
            fill(
                stored(shapes, layout, config["num_hidden_layers"]),
                copy.deepcopy(module),
                torch.float32,
                "meta",
            )
        marker = place.endswith(("eh_proj.weight", "fc.weight", "input_proj.weight"))
        words = "no MTP head" if marker else f"PATH/FILE: no tensor {place}"
        assert words in str(refused.value)


DEEPSEEK = "model.layers.92.eh_proj.weight"
FOUND = [  # names, layers of the target, what the line says
    (["model.layers.46.eh_proj.weight"], 92, "is no MTP layer of the target, which has 92 layers"),
    ([DEEPSEEK, "model.layers.93.eh_proj.weight"], 92, "several MTP layers"),
    (["mtp.fc.weight", "mtp.layers.1.mlp.up_proj.weight"], 8, "several MTP layers"),
    (["mtp.0.attn.wq_a.weight"], 8, "mtp.0.attn.wq_a.weight is of no MTP head that is known"),
    (["mtp.fc_embedding.weight", "mtp.fc_hidden.weight"], 8, "is of no MTP head that is known"),
    (["model.embed_tokens.weight"], 8, "no MTP head among its tensors"),
]


@pytest.mark.parametrize("names, layers, words", FOUND)
def test_what_is_no_head_is_refused(names, layers, words):
    with pytest.raises(BadInput) as refused:
        find_head("PATH", names, layers)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def changed_head(tmp_path, change) -> str:
    """A folder with llama's head, whose tensors `change` has changed."""
    folder = head_dir(tmp_path / "head", checkpoint("llama"))
    tensors = load_file(f"{folder}/model.safetensors")
    change(tensors)
    save_file(tensors, f"{folder}/model.safetensors")
    return folder


def quantise(tensors):
    name = "model.layers.4.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


CHANGES = {
    "up_proj.weight is float8_e4m3fn: quantised heads are not supported": quantise,
    "unknown tensor model.layers.4.more.weight": lambda t: t.update(
        {"model.layers.4.more.weight": torch.ones(2)}
    ),
    "no tensor model.layers.4.hnorm.weight": lambda t: t.pop("model.layers.4.hnorm.weight"),
    "tensor model.layers.4.enorm.weight is (3,), expected (64,)": lambda t: t.update(
        {"model.layers.4.enorm.weight": torch.ones(3)}
    ),
}


@pytest.mark.parametrize("words", CHANGES)
def test_misfit_tensors_are_named(words, tmp_path):
    with pytest.raises(BadInput) as refused:
        load_mtp(changed_head(tmp_path, CHANGES[words]), target_of("llama"))
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("equal", [True, False])
def test_copies_of_the_targets_matrices(equal, dtype, tmp_path, capsys):
    """Dropped, also where the file has rounded them; one that is no copy is named in a line."""
    model = target_of("llama").model

    def change(tensors):
        prefix = "model.layers.4."
        table = model.get_input_embeddings().weight.detach() + (0 if equal else 1)
        tensors[f"{prefix}embed_tokens.weight"] = table.to(dtype)
        tensors[f"{prefix}shared_head.head.weight"] = model.lm_head.weight.detach().to(dtype)

    head = load_mtp(changed_head(tmp_path, change), target_of("llama"))
    assert head.module.borrowed[0] is model.get_input_embeddings()
    said = capsys.readouterr().err
    assert ("embed_tokens.weight is not the target's input matrix" in said) == (not equal)


def test_a_head_is_found_in_shards(tmp_path):
    """Only shards that hold a part of it are read; the target's others need not be there."""
    import json

    folder = head_dir(tmp_path, checkpoint("llama"))
    tensors = load_file(f"{folder}/model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    places = {"model.norm.weight": "gone.safetensors"}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
        places |= dict.fromkeys(own, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    head = load_mtp(str(tmp_path), target_of("llama"))
    assert torch.equal(head.module.enorm.weight.float(), tensors["model.layers.4.enorm.weight"])


def test_a_folder_and_the_targets_own_checkpoint_draft_alike(tmp_path):
    folder = head_dir(tmp_path, checkpoint("llama"))
    ours, theirs = load_mtp(folder, target_of("llama")), drafter_of("llama").head
    for name, tensor in ours.module.state_dict().items():
        assert torch.equal(tensor, theirs.module.state_dict()[name]), name


@pytest.mark.parametrize("layout, hidden_first", [("deepseek", False), ("mimo", True)])
def test_order_of_the_two_inputs(layout, hidden_first):
    """W = [1, 0] picks the embedding in DeepSeek's order and the state in MiMo's."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=2,
        intermediate_size=4,
        vocab_size=3,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    module = MtpModule(layer_config(config), hidden_first).to_empty(device="cpu")
    embedding = torch.nn.Embedding.from_pretrained(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    module.borrowed = embedding, None
    for norm in (module.enorm, module.hnorm):
        torch.nn.init.ones_(norm.weight)
    module.eh_proj.weight.data = torch.cat([torch.eye(2), torch.zeros(2, 2)], 1)
    state = torch.tensor([[[-1.0, 1.0]]])
    (read,) = module.rows(torch.tensor([[1]]), state)[0]
    expected = [-1.0, 1.0] if hidden_first else [1.0, -1.0]
    torch.testing.assert_close(read, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "glm4_moe", "qwen3_next"])
def test_positions_may_be_counted_from_one(family):
    """transformers gives row i position i + 1: the same numbers, since RoPE is relative."""
    head = drafter_of(family).head
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(1, 9, 64, generator=generator, dtype=torch.float64)
    mask = torch.full((1, 1, 9, 9), float("-inf"), dtype=torch.float64).triu(1)
    found = []
    with torch.inference_mode():
        for first in (0, 1):
            rotary = head.rotary(rows, torch.arange(first, first + 9).unsqueeze(0))
            found.append(head.module.through(rows, rotary, mask))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_what_chains_tells_only_where_the_norm_is_uneven():
    """Of equal weights a norm is lost to the next norm; of (2, .5) it is not."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=2,
        num_attention_heads=1,
        vocab_size=3,
        num_key_value_heads=1,
        intermediate_size=4,
    )
    module = MtpModule(layer_config(config)).to_empty(device="cpu")
    torch.nn.init.ones_(module.hnorm.weight)
    out = torch.tensor([3.0, -4.0])
    for weights, same in (([1.0, 1.0], True), ([2.0, 0.5], False)):
        module.norm.weight.data = torch.tensor(weights)
        plain, normed = module.hnorm(out), module.hnorm(module.norm(out))
        assert torch.allclose(plain, normed, atol=1e-5) == same


def test_another_familys_layer_is_refused():
    config = AutoConfig.for_model("gpt2", n_embd=8, n_head=2, vocab_size=9)
    with pytest.raises(BadInput, match="model type gpt2: its decoder has no layers of RMS norms"):
        MtpModule(layer_config(config))


def test_heads_of_a_target_without_one(model_dir, tmp_path):
    from tiny_methods import build

    from model.common.target.loading import load_target

    target = load_target(model_dir, "float32", "cpu", "eager")
    with pytest.raises(BadInput, match="no MTP head among its tensors.*--mtp-path says"):
        build("mtp", model_dir, target, [])
    with pytest.raises(BadInput, match="not a directory|no such model"):
        build("mtp", model_dir, target, ["--mtp-path", str(tmp_path / "none")])
