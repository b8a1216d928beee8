"""EAGLE: published formats, the static tree, drafts against a slow reference, answers vanilla's."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prompts
from eagle_checks import (
    FreshCaches,
    assert_nothing_is_left_to_compile,
    assert_warm_sees_every_shape,
    config_dir,
    decode,
    loopy_prompts,
    parsed,
    tiny_model,
    with_graphs,
)
from eagle_dirs import eagle_dir
from eagle_slow import Recording, ScriptedHead, SlowHead, differing, static_paths, teller
from oracle import answers, new_target, outputs
from oracle import decode as oracle_decode

from model.common.contract import trees as tree
from model.common.contract.drafter import EmptyDrafter, Needs
from model.common.contract.static_tree import StaticTree, check_tree, read_tree
from model.common.errors import BadInput
from model.common.heads import head as heads
from model.common.heads.checkpoint import Checkpoint, read_tensors, save_checkpoint
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import compilations
from model.eagle import head as eagle_head
from model.eagle import inference_eagle as script
from model.eagle.drafter import StaticEagleDrafter
from model.eagle.head import EagleModule, load_eagle

TREES = Path(script.__file__).parent / "trees"
SMALL = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (0, 1, 0), (0, 1, 1)]
FAULTS = ("order", "norm", "features", "shift", "position")
# the published tensors of Vicuna 7B, 13B, 33B and LLaMA-3 8B: width, MLP, key width, vocabulary
PUBLISHED = {
    "7B": {
        "config": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
        | {"vocab_size": 32000, "rms_norm_eps": 1e-6, "num_hidden_layers": 1},
        "keys": 4096,
        "parameters": 235_937_792,
        "gigabytes": 1.468,
        "item_bytes": 4,
    },
    "13B": {
        "config": {"hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
        | {"vocab_size": 32000, "rms_norm_eps": 1e-6, "num_hidden_layers": 1},
        "keys": 5120,
        "parameters": 369_633_280,
        "gigabytes": 2.134,
        "item_bytes": 4,
    },
    "33B": {
        "config": {"hidden_size": 6656, "intermediate_size": 17920, "num_attention_heads": 52}
        | {"vocab_size": 32000, "num_key_value_heads": 13, "max_sequence_length": 2048},
        "keys": 1664,
        "parameters": 557_200_000,
        "gigabytes": 3.081,
        "item_bytes": 4,
    },
    "LLaMA3-8B": {
        "config": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
        | {"vocab_size": 128256, "num_key_value_heads": 8, "bias": False, "rope_theta": 500000.0},
        "keys": 1024,
        "parameters": 251_700_000,
        "gigabytes": 1.554,
        "item_bytes": 2,
    },
}


def published_shapes(name):
    """Shapes of a published file, typed from its description."""
    config, keys = PUBLISHED[name]["config"], PUBLISHED[name]["keys"]
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embed_tokens.weight": (config["vocab_size"], width),
        "fc.weight": (width, 2 * width),
        "fc.bias": (width,),
        "layers.0.self_attn.q_proj.weight": (width, width),
        "layers.0.self_attn.k_proj.weight": (keys, width),
        "layers.0.self_attn.v_proj.weight": (keys, width),
        "layers.0.self_attn.o_proj.weight": (width, width),
        "layers.0.mlp.gate_proj.weight": (inner, width),
        "layers.0.mlp.up_proj.weight": (inner, width),
        "layers.0.mlp.down_proj.weight": (width, inner),
        "layers.0.post_attention_layernorm.weight": (width,),
    }
    if not config.get("bias", True):
        del shapes["fc.bias"]
    return shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random head for the loopy targets."""
    return eagle_dir(tmp_path_factory.mktemp("eagle"), config_dir(tmp_path_factory.mktemp("t")))


@pytest.fixture(scope="module")
def target():
    return Target(tiny_model())


@pytest.fixture
def wide(target, tmp_path):
    """The config directory of that target, to make other heads for."""
    return config_dir(tmp_path / "target")


def static(head, paths=None):
    return StaticEagleDrafter(head, StaticTree(paths or SMALL, "cpu"))


def published_tree():
    return read_tree("mc_sim_7b_63", TREES, 32000)


# --- the tree ---


def test_published_tree():
    built = StaticTree(published_tree(), "cpu")
    assert len(built) == 25 and built.is_sibling_closed
    assert [level.stop - level.start for level in built.levels] == [4, 8, 8, 3, 2]
    known = tree.ancestors(built.parents)
    assert known.shape == (26, 26) and known.sum() == 92
    assert (known.sum(-1) - 1).tolist() == [0, *built.depths]
    leaves = [node for node in range(25) if not built.num_children[1 + node]]
    assert len(leaves) == 15 and built.depth == 5  # rows of 1 + depth
    assert [len(inner) for inner in built.inner] == [1, 4, 4, 1, 1]  # 11 groups of candidates
    fed = [[built.paths[node] for node in inner] for inner in built.inner[1:]]
    assert fed == [
        [(0,), (1,), (2,), (3,)],
        [(0, 0), (0, 1), (0, 2), (1, 0)],
        [(0, 0, 0)],
        [(0, 0, 0, 0)],
    ]


def test_passes(target, folder, monkeypatch):
    """Widths, positions and what each slot may read, for the published tree."""
    head = load_eagle(folder, target, "eager")
    reads, read_below = [], head.read_below

    def heard(inputs, mask, depth, rows):
        reads.append((inputs[0].shape[1], (mask == 0)[0, 0], depth))
        return read_below(inputs, mask, depth, rows)

    monkeypatch.setattr(head, "read_below", heard)
    decode(target, static(head, published_tree()), loopy_prompts(1), 4)
    shapes = [(width, known.shape[1], depth) for width, known, depth in reads[:4]]
    assert shapes == [(4, 4, 0), (4, 8, 1), (1, 9, 2), (1, 10, 3)]
    assert [known.sum(-1).tolist() for _, known, _ in reads[:4]] == [
        [1] * 4,
        [2] * 4,
        [3],
        [4],
    ]
    assert reads[1][1].int().tolist() == [
        [1, 0, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0, 0, 1],
    ]


# --- the format ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name, monkeypatch):
    """The whole loader on the meta device: every tensor of the file finds its place, cast."""
    told, shapes = PUBLISHED[name], published_shapes(name)
    config = told["config"]
    stored = torch.float32 if told["item_bytes"] == 4 else torch.float16

    def open_published(self, path, names, prefix=""):
        self.path, self.file, self.config = path, f"{path}/pytorch_model.bin", config
        self.tensors = {n: torch.empty(s, dtype=stored, device="meta") for n, s in shapes.items()}

    monkeypatch.setattr(Checkpoint, "__init__", open_published)
    with torch.device("meta"):
        embedding = torch.nn.Embedding(config["vocab_size"], config["hidden_size"])
    target = SimpleNamespace(
        config=SimpleNamespace(hidden_size=config["hidden_size"]),
        vocab_size=config["vocab_size"],
        dtype=torch.float16,
        device=torch.device("meta"),
        model=SimpleNamespace(
            get_input_embeddings=lambda: embedding, get_output_embeddings=lambda: embedding
        ),
        twin=None,
        grown=lambda *head: Target.grown(target, *head),
    )
    target.origin = target
    head = load_eagle("published", target, "eager")
    held = {n: tuple(t.shape) for n, t in head.module.state_dict().items()}
    assert held == {n: s for n, s in shapes.items() if n != "embed_tokens.weight"}
    assert {t.dtype for t in head.module.state_dict().values()} == {torch.float16}
    parameters = sum(t.numel() for t in head.module.parameters())
    assert abs(parameters - told["parameters"]) < 5e4
    if name in ("7B", "13B"):
        assert parameters == told["parameters"]
    whole = parameters + config["vocab_size"] * config["hidden_size"]
    assert abs(whole * told["item_bytes"] / 1e9 - told["gigabytes"]) < 0.001
    assert head.module.borrowed == (embedding, embedding)
    base = config.get("rope_theta", 10000.0)
    dim = config["hidden_size"] // config["num_attention_heads"]
    assert torch.allclose(
        _inverse_frequencies(config),
        base ** (-torch.arange(0, dim, 2).float() / dim),
    )


def _inverse_frequencies(config):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(heads.llama_config(config)).inv_freq


def test_config_fields_reach_the_layer():
    config = heads.llama_config(
        {**PUBLISHED["LLaMA3-8B"]["config"], "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    )
    assert (config.rms_norm_eps, config.head_dim, config.num_hidden_layers) == (1e-5, 128, 1)
    assert config.rope_parameters["rope_theta"] == 500000.0
    assert heads.llama_config(PUBLISHED["33B"]["config"]).num_key_value_heads == 13
    with torch.device("meta"):
        layer = eagle_head.EagleLayer(config)
    assert not [name for name, _ in layer.named_parameters() if "input_layernorm" in name]


# --- the loader ---


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"num_key_value_heads": 1}])
def test_files_load(target, wide, tmp_path, file, changes):
    path = eagle_dir(tmp_path / "head", wide, file=file, **changes)
    tensors = read_tensors(f"{path}/{file}")
    assert ("fc.bias" in tensors) == changes.get("bias", True)
    held = load_eagle(path, target, "eager").module.state_dict()
    assert set(held) == set(tensors) - {"embed_tokens.weight"}
    assert all(torch.equal(held[name], tensors[name]) for name in held)


def test_float32_files_are_cast(wide, tmp_path):
    target = Target(tiny_model(dtype=torch.bfloat16))
    head = load_eagle(eagle_dir(tmp_path / "head", wide), target, "eager")
    assert {p.dtype for p in head.module.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in head.module.parameters())
    drafter = static(head)
    ids, _ = decode(target, drafter, loopy_prompts())
    assert all(len(answer) == 16 for answer in ids)
    assert head.cache.storage[0].dtype == torch.bfloat16


def test_the_copy_of_the_embedding_is_optional_and_unused(target, wide, tmp_path):
    path = eagle_dir(tmp_path / "head", wide)
    with_copy = decode(target, static(load_eagle(path, target, "eager")), loopy_prompts())
    change(path, lambda tensors: tensors.pop("embed_tokens.weight"))
    head = load_eagle(path, target, "eager")
    assert decode(target, static(head), loopy_prompts()) == with_copy
    assert head.module.borrowed[0] is target.model.get_input_embeddings()
    assert head.module.borrowed[1] is target.model.get_output_embeddings()
    stored = sum(tensor.nbytes for tensor in read_tensors(f"{path}/pytorch_model.bin").values())
    assert static(head).facts() == {"head_bytes": stored}


def change(path, edit=None, **config):
    """Rewrite a head with edited tensors and config fields."""
    fields = json.loads(open(f"{path}/config.json").read()) | config
    tensors = read_tensors(f"{path}/pytorch_model.bin")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if edit:
        edit(tensors)
    save_checkpoint(path, fields, "pytorch_model.bin", tensors)


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


BAD = [
    ({}, lambda t: t.pop("fc.weight"), ["no tensor fc.weight", "(64, 128)"]),
    ({}, lambda t: t.pop("fc.bias"), ["no tensor fc.bias", "(64,)"]),
    ({"bias": False}, None, ["unknown tensor fc.bias", "(64,)"]),
    (
        {},
        lambda t: t.update({"layers.0.input_layernorm.weight": torch.ones(64)}),
        ["unknown tensor layers.0.input_layernorm.weight", "(64,)"],
    ),
    ({}, rename("fc.weight", "model.fc.weight"), ["no tensor fc.weight"]),
    (
        {},
        lambda t: t.update({"lm_head.weight": torch.ones(17, 64)}),
        ["unknown", "lm_head", "(17, 64)"],
    ),
    (
        {"num_key_value_heads": 4},
        None,
        ["layers.0.self_attn.k_proj.weight", "(32, 64)", "expected (64, 64)"],
    ),
    ({"intermediate_size": 95}, None, ["layers.0.mlp.gate_proj.weight", "(96, 64)", "(95, 64)"]),
    (
        {},
        lambda t: t.update({"fc.weight": torch.ones(64, 64)}),
        ["fc.weight", "(64, 64)", "(64, 128)"],
    ),
    (
        {},
        lambda t: t.update({"embed_tokens.weight": torch.ones(18, 64)}),
        ["embed_tokens.weight", "(18, 64)", "(17, 64)"],
    ),
    ({"hidden_size": 32}, None, ["hidden_size 32", "64"]),
    ({"vocab_size": 18}, None, ["vocab_size 18", "17"]),
    ({"intermediate_size": None}, None, ["no intermediate_size"]),
]


@pytest.mark.parametrize("config, edit, words", BAD, ids=[bad[2][0] for bad in BAD])
def test_bad_heads_are_one_line(target, wide, tmp_path, config, edit, words):
    path = eagle_dir(tmp_path / "head", wide)
    change(path, edit, **config)
    with pytest.raises(BadInput) as error:
        load_eagle(path, target, "eager")
    message = str(error.value)
    assert "\n" not in message and message.startswith(path)
    assert all(word in message for word in words), message


def test_missing_files_are_one_line(target, wide, tmp_path):
    path = eagle_dir(tmp_path / "head", wide)
    for name, words in (("pytorch_model.bin", "none of"), ("config.json", "config.json")):
        (tmp_path / "head" / name).unlink()
        with pytest.raises(BadInput, match=words) as error:
            load_eagle(path, target, "eager")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "paths, words",
    [
        ([[0], [0, 0], [1, 0]], "[1, 0] without [1]"),
        ([[0], [2]], "ranks 0, 1, 2, ..."),
        ([[0], [0, 1]], "ranks 0, 1, 2, ..."),
        ([[17]], "from 0 to 16"),
    ],
)
def test_bad_trees_are_one_line(target, folder, tmp_path, paths, words):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(paths))
    args = parsed(script, "eagle", "--eagle-path", folder, "--tree", file)
    with pytest.raises(BadInput) as error:
        script.build(args, target)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_flags(target, folder, tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps([list(path) for path in SMALL[::-1]]))
    drafter = script.build(parsed(script, "eagle", "--eagle-path", folder), target)
    assert len(drafter.tree) == 25 and drafter.needs == Needs(hidden=("last",))
    assert drafter.shapes()[0][0] == 25 and drafter.shapes()[0][1] is drafter.tree.parents
    args = parsed(script, "eagle", "--eagle-path", folder, "--tree", file)
    assert script.build(args, target).tree.paths == check_tree([list(p) for p in SMALL], "", 17)


# --- drafts ---


@pytest.fixture(scope="module")
def exact():
    """A float64 target, in which near-ties do not reorder candidates."""
    return Target(tiny_model(dtype=torch.float64))


def slow_steps(recording, folder, fault=None, paths=None):
    slow = SlowHead(folder, recording.target.model, 1, fault)
    return differing(recording, slow, lambda best: static_paths(best, paths or SMALL))


@pytest.mark.parametrize("batch", [1, 4])
def test_drafts_equal_a_slow_reference(exact, folder, batch):
    """Every node of every step, with rows of other lengths and one that ends early."""
    prompts = loopy_prompts(batch)
    plain, _ = decode(exact, EmptyDrafter(), prompts)
    stop = StopRules(frozenset({plain[0][4]})) if batch > 1 else None
    recording = Recording(static(load_eagle(folder, exact, "eager")), exact)
    ids, accepted = decode(exact, recording, prompts, stop=stop)
    if batch > 1:
        assert len(set(map(len, ids))) > 1
    assert max(map(max, accepted)) > 1 + (batch > 1)
    assert len(recording.steps) == sum(map(len, accepted))
    assert slow_steps(recording, folder) == (0, len(recording.steps))


def test_the_published_tree_against_a_slow_reference(exact, folder):
    paths = published_tree()
    recording = Recording(static(load_eagle(folder, exact, "eager"), paths), exact)
    decode(exact, recording, loopy_prompts(2), 10)
    assert slow_steps(recording, folder, paths=paths)[0] == 0


@pytest.mark.parametrize("changes", [{"bias": False}, {"num_key_value_heads": 4}])
def test_other_heads_against_a_slow_reference(exact, tmp_path, changes):
    folder = eagle_dir(tmp_path / "head", config_dir(tmp_path), **changes, rope_theta=500.0)
    recording = Recording(static(load_eagle(folder, exact, "eager")), exact)
    decode(exact, recording, loopy_prompts(2), 10)
    assert slow_steps(recording, folder)[0] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(exact, folder, fault):
    """A reference with the embedding behind the feature, an input norm, features before the final
    norm, unshifted tokens, or tree slots a position late drafts other trees."""
    recording = Recording(static(load_eagle(folder, exact, "eager")), exact)
    decode(exact, recording, loopy_prompts(2))
    wrong, steps = slow_steps(recording, folder, fault)
    assert wrong > (0 if fault == "position" else steps // 2)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_cache_equals_a_fresh_prefill(target, folder, batch):
    """One slot per committed token but the root, with real features, whatever was drafted."""
    drafter = static(load_eagle(folder, target, "eager"))
    check = FreshCaches(tiny_model(), drafter, load_eagle(folder, target, "eager"))
    plain, _ = decode(target, EmptyDrafter(), loopy_prompts(batch))
    stop = StopRules(frozenset({plain[0][5]})) if batch > 1 else None
    recording = Recording(drafter, target, check)
    _, accepted = decode(target, recording, loopy_prompts(batch), stop=stop)
    assert check.checked == sum(map(len, accepted)) > batch
    assert batch == 1 or drafter.head.cache.length[0] == 0  # it ended first


# --- answers ---


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_greedy_ids_are_vanillas(family, tmp_path):
    from conftest import make_model

    target = Target(make_model(family, vocab_size=17))
    folder = eagle_dir(tmp_path / "head", config_dir(tmp_path))
    prompts = loopy_prompts()
    expected, _ = decode(target, EmptyDrafter(), prompts, 24)
    drafter = static(load_eagle(folder, target, "eager"), published_tree())
    for batch in (1, 4):
        ids, accepted = decode(target, drafter, prompts, 24, batch=batch)
        assert ids == expected
        assert all(1 <= length <= 6 for lengths in accepted for length in lengths)
        assert [1 + sum(lengths) for lengths in accepted] == [24] * 4


@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]], ids=str)
def test_oracle_heads_commit_six_and_adversaries_one(rows):
    known = [answers("llama")[row] for row in rows]
    prompts = [make_prompts(4)[row] for row in rows]
    for right, lengths in ((True, [6] * 5), (False, [1] * 30)):
        head = ScriptedHead(teller(known, 97, right), 97)
        turns = oracle_decode(new_target(), static(head, published_tree()), prompts, 31)
        assert outputs(turns) == [ids[:31] for ids in known]
        assert [turn.accept_lengths for turn in turns] == [lengths] * len(rows)


def test_long_prompts_in_chunks(folder, monkeypatch):
    """Ragged prompts read seven rows at a time are drafted for as if read at once."""
    target = Target(tiny_model())
    prompts = [*loopy_prompts(4), (loopy_prompts(4)[2] * 4)[:120]]
    runs = []
    for chunk in (heads.PROMPT_CHUNK, 7):
        monkeypatch.setattr(heads, "PROMPT_CHUNK", chunk)
        drafter = static(load_eagle(folder, target, "eager"))
        recording = Recording(drafter, target)
        runs.append((decode(target, recording, prompts), recording.steps))
        alone = decode(target, drafter, prompts, batch=1)
        assert alone == runs[-1][0]
    assert runs[0] == runs[1]


def test_a_drafter_forgets(target, folder):
    drafter = static(load_eagle(folder, target, "eager"))
    first = decode(target, drafter, loopy_prompts(), batch=1)
    again = decode(target, drafter, loopy_prompts()[::-1], batch=1)
    assert (again[0][::-1], again[1][::-1]) == first


# --- runtimes ---


@pytest.mark.parametrize("batch", [1, 4])
def test_replayed_passes_draft_the_same(target, folder, batch):
    """Every replay overwrites the tensors of the last one of its shape."""
    head = load_eagle(folder, target, "eager")
    plain = Recording(static(head, published_tree()), target)
    expected = decode(target, plain, loopy_prompts(batch))
    drafter = static(load_eagle(folder, target, "eager"), published_tree())
    capture = with_graphs(drafter)
    for _ in range(2):
        replayed = Recording(drafter, target)
        assert decode(target, replayed, loopy_prompts(batch)) == expected
        assert replayed.steps == plain.steps
    calls = 2 * max(map(len, expected[1]))  # one a step
    assert capture.captured == 1 and capture.replayed == calls - 1


def test_warm_leaves_nothing_to_capture(target, folder):
    """Also for longer answers than those before: the head's cache has its size by then."""
    drafter = static(load_eagle(folder, target, "eager"), published_tree())
    capture = with_graphs(drafter)
    ids = assert_nothing_is_left_to_compile(target, drafter, loopy_prompts(2), 250, capture)
    assert ids == decode(target, EmptyDrafter(), loopy_prompts(2), 250)[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_warm_sees_every_shape(folder, batch):
    target = Target(tiny_model())
    drafter = static(load_eagle(folder, target, "eager"), published_tree())
    assert_warm_sees_every_shape(target, drafter, loopy_prompts(batch), 250)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C compiler")
def test_compiled_passes_give_the_eager_ids(tmp_path):
    model = tiny_model(num_hidden_layers=1)
    target, eager = Target(model, "compile"), Target(model)
    path = eagle_dir(tmp_path / "head", config_dir(tmp_path))
    paths = [(0,), (1,), (0, 0), (1, 0)]
    prompts = loopy_prompts(2)[1:]
    plain = Recording(static(load_eagle(path, eager, "eager"), paths), eager)
    expected = decode(eager, plain, prompts)
    drafter = static(load_eagle(path, target, "compile"), paths)
    ids = assert_nothing_is_left_to_compile(target, drafter, prompts, 16)
    assert ids == expected[0]
    before, compiled = compilations(), Recording(drafter, target)
    assert decode(target, compiled, prompts) == expected
    assert compiled.steps == plain.steps and compilations() == before


def test_module_returns_the_picked_row():
    config = heads.llama_config(
        {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 5}
    )
    embedding, lm_head = torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5, bias=False)
    module = EagleModule(config, True, embedding, lm_head)
    rotary = (torch.ones(1, 3, 4), torch.zeros(1, 3, 4))
    mask = torch.zeros(1, 1, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    inputs = [torch.tensor([[1, 2, 3], [3, 2, 1]]), None, torch.randn(2, 3, 8)]
    mask = mask.expand(2, -1, -1, -1)
    every, logits = module(inputs, rotary, mask, None)
    inputs[1] = torch.tensor([0, 2])
    picked, some = module(inputs, rotary, mask, None)
    assert torch.equal(picked[:, 0], every[[0, 1], [0, 2]]) and picked.shape == (2, 1, 8)
    torch.testing.assert_close(some[:, 0], logits[[0, 1], [0, 2]])
    assert set(dict(module.named_parameters())) & {"borrowed"} == set()
