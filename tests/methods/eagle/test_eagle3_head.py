"""EAGLE-3's head: the published formats, draft vocabularies, the loader, other widths, flags."""

from types import SimpleNamespace

import pytest
import torch
from eagle_checks import DEEP, KINDS, SMALL_VOCAB, config_dir, loopy_prompts, parsed, tiny_model
from eagle_dirs import eagle3_dir
from oracle import decode, facts, outputs
from recording import Recording

from model.common.contract.drafter import Needs
from model.common.contract.sequence import EmptyDrafter
from model.common.errors import BadInput
from model.common.heads import head as heads
from model.common.heads.checkpoint import Checkpoint, read_config, read_tensors, save_checkpoint
from model.common.target.model import Target
from model.common.target.runtime import make_runtime
from model.eagle3 import head as eagle3_head
from model.eagle3 import inference_eagle3 as script
from model.eagle3.head import fused_layers, load_eagle3

KIND = KINDS["eagle3"]
OWN_WIDTH = {"hidden_size": 32, "target_hidden_size": 64}
PUBLISHED = {
    "8B": {
        "config": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "num_hidden_layers": 1, "rms_norm_eps": 1e-5}
        | {"vocab_size": 128256, "draft_vocab_size": 32000, "tie_word_embeddings": False},
        "layers": 32,
        "keys": 1024,
        "parameters": 424_689_664,
        "gigabytes": 0.850,
    },
    "13B": {
        "config": {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
        | {"num_hidden_layers": 40, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
        | {"vocab_size": 32000, "draft_vocab_size": 32000, "tie_word_embeddings": False},
        "layers": 40,
        "keys": 5120,
        "parameters": 638_341_120,
        "gigabytes": 1.277,
    },
}


def published_shapes(name):
    """Shapes of a published file without its maps, typed from its description."""
    config, keys = PUBLISHED[name]["config"], PUBLISHED[name]["keys"]
    width, inner = config["hidden_size"], config["intermediate_size"]
    return {
        "fc.weight": (width, 3 * width),
        "midlayer.hidden_norm.weight": (width,),
        "midlayer.input_layernorm.weight": (width,),
        "midlayer.self_attn.q_proj.weight": (width, 2 * width),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * width),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * width),
        "midlayer.self_attn.o_proj.weight": (width, width),
        "midlayer.post_attention_layernorm.weight": (width,),
        "midlayer.mlp.gate_proj.weight": (inner, width),
        "midlayer.mlp.up_proj.weight": (inner, width),
        "midlayer.mlp.down_proj.weight": (width, inner),
        "norm.weight": (width,),
        "lm_head.weight": (32000, width),
    }


@pytest.fixture(scope="module")
def target():
    return Target(tiny_model(**DEEP))


@pytest.fixture(scope="module")
def exact():
    """A float64 target, in which near-ties do not reorder candidates."""
    return Target(tiny_model(**DEEP, dtype=torch.float64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random head for the deep target, over 11 of its 17 tokens."""
    path = config_dir(tmp_path_factory.mktemp("t"))
    return eagle3_dir(tmp_path_factory.mktemp("eagle3"), path, SMALL_VOCAB)


@pytest.fixture
def wide(tmp_path):
    """The config directory of that target, to make other heads for."""
    return config_dir(tmp_path / "target")


def dynamic(folder, target):
    return KIND.drafter(load_eagle3(folder, target))


def own_width_dir(folder, wide, draft_vocab=None):
    """A head half as wide as the target, with an embedding of its own."""
    path = eagle3_dir(folder, wide, draft_vocab, **OWN_WIDTH)
    generator = torch.Generator().manual_seed(3)

    def widen(tensors):
        tensors["fc.weight"] = 0.15 * torch.randn(32, 3 * 64, generator=generator)
        tensors["embed_tokens.weight"] = torch.randn(17, 32, generator=generator)

    change(path, widen)
    return path


def change(path, edit=None, **config):
    """Rewrite a head with edited tensors and config fields."""
    tensors = read_tensors(f"{path}/pytorch_model.bin")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if edit:
        edit(tensors)
    save_checkpoint(path, read_config(path) | config, "pytorch_model.bin", tensors)


# --- the format ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name, monkeypatch):
    """The whole loader on the meta device, 40 layers said and one stored included."""
    told, shapes = PUBLISHED[name], published_shapes(name)
    config, mapped = told["config"], told["config"]["vocab_size"] != 32000
    stored = {n: torch.empty(s, dtype=torch.float16, device="meta") for n, s in shapes.items()}
    if mapped:
        stored["d2t"] = torch.empty(32000, dtype=torch.long, device="meta")
        stored["t2d"] = torch.empty(128256, dtype=torch.bool, device="meta")
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert abs(size / 1e9 - told["gigabytes"]) < 0.001

    def open_published(self, path, names, prefix=""):
        self.path, self.file = path, f"{path}/pytorch_model.bin"
        self.config, self.tensors = config, dict(stored)

    monkeypatch.setattr(Checkpoint, "__init__", open_published)
    monkeypatch.setattr(eagle3_head, "check_vocabulary", lambda *_: None)  # reads values
    with torch.device("meta"):
        embedding = torch.nn.Embedding(config["vocab_size"], config["hidden_size"])
    shape = {"hidden_size": config["hidden_size"], "num_hidden_layers": told["layers"]}
    target = SimpleNamespace(
        config=SimpleNamespace(**shape),
        vocab_size=config["vocab_size"],
        dtype=torch.float16,
        device=torch.device("meta"),
        model=SimpleNamespace(
            get_input_embeddings=lambda: embedding, get_output_embeddings=lambda: embedding
        ),
        runtime=make_runtime("eager", torch.device("meta")),
        twin=None,
        grown=lambda *head: Target.grown(target, *head),
    )
    target.origin = target
    head = load_eagle3("published", target)
    held = {n: tuple(p.shape) for n, p in head.module.named_parameters()}
    assert held == shapes
    assert sum(p.numel() for p in head.module.parameters()) == told["parameters"]
    assert set(dict(head.module.named_buffers())) == ({"d2t", "t2d"} if mapped else set())
    assert head.needs == {"8B": (2, 16, 29), "13B": (2, 20, 37)}[name]
    assert (head.offsets is None) != mapped
    assert head.module.borrowed == (embedding,)
    dim = 128
    usual = 10000.0 ** (-torch.arange(0, dim, 2).float() / dim)
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    assert torch.allclose(LlamaRotaryEmbedding(heads.llama_config(config)).inv_freq, usual)


def test_fused_layers():
    assert [fused_layers(n) for n in (8, 32, 40, 80)] == [
        (2, 4, 5),
        (2, 16, 29),
        (2, 20, 37),
        (2, 40, 77),
    ]
    for num_layers in (1, 3, 7):
        with pytest.raises(BadInput, match="at least 8 layers") as error:
            fused_layers(num_layers)
        assert "\n" not in str(error.value)


# --- the loader ---


@pytest.mark.parametrize("draft_vocab", [None, SMALL_VOCAB, 16])
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"num_hidden_layers": 40}])
def test_files_load(target, wide, tmp_path, draft_vocab, changes):
    path = eagle3_dir(tmp_path / "head", wide, draft_vocab, **changes)
    tensors = read_tensors(f"{path}/pytorch_model.bin")
    head = load_eagle3(path, target)
    held = head.module.state_dict()
    assert set(held) == set(tensors)
    assert all(torch.equal(held[name], tensors[name]) for name in held)
    ids = head.target_ids(torch.arange(draft_vocab or 17))
    covered = tensors["t2d"] if draft_vocab else torch.ones(17)
    assert ids.tolist() == covered.nonzero().flatten().tolist()


def test_safetensors_and_casts(wide, tmp_path):
    target = Target(tiny_model(**DEEP, dtype=torch.bfloat16))
    path = eagle3_dir(tmp_path / "head", wide, SMALL_VOCAB)
    tensors = read_tensors(f"{path}/pytorch_model.bin")
    config = read_config(path)
    (tmp_path / "head" / "pytorch_model.bin").unlink()
    save_checkpoint(path, config, "model.safetensors", tensors)
    head = load_eagle3(path, target)
    assert {p.dtype for p in head.module.parameters()} == {torch.bfloat16}
    assert head.module.d2t.dtype == torch.long and head.module.t2d.dtype == torch.bool
    assert not any(p.requires_grad for p in head.module.parameters())
    turns = decode(target, KIND.drafter(head), loopy_prompts(), 16)
    assert all(len(turn.output_ids) == 16 for turn in turns)


def test_variants_of_a_file_draft_the_same(target, wide, tmp_path):
    """layers.0.* for midlayer.*, a random embedding, t2d left out, maps of a full vocabulary."""
    path = eagle3_dir(tmp_path / "small", wide, SMALL_VOCAB)

    def drafted(head):
        return facts(decode(target, KIND.drafter(head), loopy_prompts(), 16))

    expected = drafted(load_eagle3(path, target))

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace("midlayer.", "layers.0.")] = tensors.pop(name)

    change(path, rename)
    assert not any("midlayer" in name for name in read_tensors(f"{path}/pytorch_model.bin"))
    assert drafted(load_eagle3(path, target)) == expected
    change(path, lambda t: t.update({"embed_tokens.weight": torch.randn(17, 64)}))
    assert drafted(load_eagle3(path, target)) == expected
    change(path, lambda t: t.pop("t2d"))
    head = load_eagle3(path, target)
    assert drafted(head) == expected
    assert head.module.t2d.sum() == SMALL_VOCAB and not head.module.t2d.is_meta
    assert head.module.borrowed == (target.model.get_input_embeddings(),)

    whole = eagle3_dir(tmp_path / "whole", wide)
    expected = drafted(load_eagle3(whole, target))
    maps = {"d2t": torch.zeros(17, dtype=torch.long), "t2d": torch.ones(17, dtype=torch.bool)}
    change(whole, lambda t: t.update(maps))
    assert drafted(load_eagle3(whole, target)) == expected
    change(whole, draft_vocab_size=None)
    assert drafted(load_eagle3(whole, target)) == expected


def put(name, *shape, value=1.0):
    return lambda tensors: tensors.update({name: torch.full(shape, value)})


def shift_last(tensors):
    tensors["d2t"][-1] += 17


def collide(tensors):
    tensors["d2t"][1] = tensors["d2t"][0] - 1


def negative(tensors):
    tensors["d2t"][0] = -1


def uncover(tensors):
    tensors["t2d"][tensors["t2d"].nonzero()[0]] = False


BAD = [
    ({}, lambda t: t.pop("fc.weight"), ["no tensor fc.weight", "(64, 192)"]),
    ({}, lambda t: t.pop("norm.weight"), ["no tensor norm.weight", "(64,)"]),
    ({}, lambda t: t.pop("lm_head.weight"), ["no tensor lm_head.weight", "(11, 64)"]),
    ({}, lambda t: t.pop("d2t"), ["no tensor d2t", "(11,)"]),
    ({}, put("fc.bias", 64), ["unknown tensor fc.bias", "(64,)"]),
    ({}, put("fc_norm.weight", 192), ["unknown tensor fc_norm.weight", "(192,)"]),
    ({}, put("fc.weight", 64, 128), ["tensor fc.weight is (64, 128)", "expected (64, 192)"]),
    ({"draft_vocab_size": 12}, None, ["tensor d2t is (11,)", "expected (12,)"]),
    ({"draft_vocab_size": None}, None, ["lm_head.weight is (11, 64)", "expected (17, 64)"]),
    ({"num_key_value_heads": 4}, None, ["midlayer.self_attn.k_proj", "(32, 128)", "(64, 128)"]),
    ({}, shift_last, ["d2t does not map into the 17 ids"]),
    ({}, negative, ["d2t does not map into the 17 ids"]),
    ({}, collide, ["d2t does not map"]),
    ({}, uncover, ["t2d and d2t do not cover the same ids"]),
    ({}, put("d2t", 11), ["tensor d2t is torch.float32"]),
    ({"hidden_size": 32}, None, ["hidden_size of the target 32", "64"]),
    ({"target_hidden_size": 32}, None, ["hidden_size of the target 32", "64"]),
    ({"hidden_size": 32, "target_hidden_size": 64}, None, ["tensor fc.weight", "(32, 192)"]),
    ({"vocab_size": 18}, None, ["vocab_size 18", "17"]),
    ({"norm_before_residual": True}, None, ["norm_before_residual is not supported"]),
    ({"fc_norm": True}, None, ["fc_norm is not supported"]),
    ({"norm_output": False}, None, ["norm_output is not supported"]),
    ({"eagle_config": {"use_aux_hidden_state": False}}, None, ["eagle_config"]),
    ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}}, None, ["[1, 3, 4]"]),
]


@pytest.mark.parametrize("config, edit, words", BAD, ids=[bad[2][0] for bad in BAD])
def test_bad_heads_are_one_line(target, wide, tmp_path, config, edit, words):
    path = eagle3_dir(tmp_path / "head", wide, SMALL_VOCAB)
    change(path, edit, **config)
    with pytest.raises(BadInput) as error:
        load_eagle3(path, target)
    message = str(error.value)
    assert "\n" not in message and message.startswith(path)
    assert all(word in message for word in words), message


def test_the_usual_eagle_config_is_taken(target, wide, tmp_path):
    path = eagle3_dir(tmp_path / "head", wide)
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True}
    change(path, eagle_config=ids, norm_output=True, norm_before_residual=False)
    assert load_eagle3(path, target).needs == (2, 4, 5)


def test_shallow_targets_are_one_line(folder):
    args = parsed(script, "eagle3", "--eagle-path", folder)
    with pytest.raises(BadInput, match="at least 8 layers, not 3") as error:
        script.build(args, Target(tiny_model(num_hidden_layers=3)))
    assert "\n" not in str(error.value)


def test_flags(target, folder):
    with pytest.raises(BadInput, match="--draft-top-k 12: the head drafts 11 tokens"):
        script.build(parsed(script, "eagle3", "--eagle-path", folder, "--draft-top-k", 12), target)
    with pytest.raises(BadInput, match="--total-token 60: .* allow 2 to 13"):
        flags = ["--eagle-path", folder, "--draft-top-k", 3, "--depth", 1]
        script.build(parsed(script, "eagle3", *flags), target)
    drafter = script.build(parsed(script, "eagle3", "--eagle-path", folder), target)
    assert (drafter.max_nodes, drafter.depth, drafter.top_k) == (59, 5, 10)
    assert drafter.needs == Needs(hidden=(2, 4, 5))
    stored = read_tensors(f"{folder}/pytorch_model.bin").values()
    assert drafter.facts() == {"head_bytes": sum(tensor.nbytes for tensor in stored)}


# --- drafts ---


@pytest.mark.parametrize("draft_vocab", [None, SMALL_VOCAB])
def test_a_head_of_another_width(exact, wide, tmp_path, draft_vocab):
    """Half the target's width, an embedding of its own: answers vanilla's, drafts the slow ones."""
    path = own_width_dir(tmp_path / "head", wide, draft_vocab)
    recording = Recording(dynamic(path, exact))
    turns = decode(exact, recording, loopy_prompts(), 16, num_slots=3)
    assert outputs(turns) == outputs(decode(exact, EmptyDrafter(), loopy_prompts(), 16))
    assert max(max(turn.accept_lengths) for turn in turns) > 1
    assert KIND.slow_steps(recording, exact.model, path)[0] == 0
    change(path, lambda tensors: tensors.pop("embed_tokens.weight"))
    with pytest.raises(BadInput, match=r"no tensor embed_tokens.weight, expected \(17, 32\)"):
        load_eagle3(path, exact)


def test_a_head_with_a_rope_base(exact, wide, tmp_path):
    path = eagle3_dir(tmp_path / "head", wide, rope_theta=50.0)
    recording = Recording(dynamic(path, exact))
    decode(exact, recording, loopy_prompts(2), 8)
    assert KIND.slow_steps(recording, exact.model, path)[0] == 0
