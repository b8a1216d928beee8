"""--scale-to: a twin says what its origin says, whatever drafts; only its corner counts."""

import pytest
import torch
from answer_samples import report_of, run_tool
from conftest import make_model, make_prompts
from harness_runs import answer, read_meta, refused
from tiny_methods import MINI, build, decode, mini_bench, mini_flags
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from model.common.contract.drafter import Needs
from model.common.errors import BadInput
from model.common.loop.sampling import Sampler
from model.common.loop.source import pad_right
from model.common.loop.turns import StopRules
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.common.target.offload import Offload
from model.common.target.twin import twin as twin_module
from model.common.target.twin.corner import FAR, head_places, layer_places
from model.common.target.twin.shapes import SHAPES, Shape, draft_shape, read_shape
from model.common.target.twin.twin import Twin, large_config

SMALL = {"num_hidden_layers": 8}  # of the tiny target; 4 heads of 16, 2 of them for keys
SCALE = "512x12x1024x2100"  # of the mini target: heads of 64 for 32
DRAFT_SCALE = "256x4x512x2100"
WITH_DRAFT = ("sps", "specdecpp", "specexec")
SHAPES_TRIED = {
    "own heads": Shape(256, 12, 512, 300),  # 4 of 64
    "many heads": Shape(256, 9, 96, 97, heads=8, kv_heads=8),
    "grouped": Shape(384, 21, 200, 128, heads=24, kv_heads=3),
    "wide groups": Shape(256, 8, 128, 300, heads=16, kv_heads=2),
    "the same": Shape(64, 8, 96, 97, heads=4, kv_heads=2),
}
MODELS_TRIED = {
    "llama": {},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "one layer": {"num_hidden_layers": 1},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def make_twin(origin, shape, seed=0, dtype=torch.float32):
    """A target's twin as a Target on the CPU."""
    twin = Twin(origin, shape, "test", seed)
    return Target(twin.model(dtype, torch.device("cpu")), "eager", twin)


def read(target, layers=()):
    """(logits [B, V], hidden) after ragged prompts."""
    prompts = make_prompts(4)
    ids = pad_right(prompts, torch.device("cpu"))
    needs, lengths = Needs(hidden=("last", *layers)), [len(prompt) for prompt in prompts]
    target.reserve(len(prompts), 80)
    found = target.prefill(list(range(len(prompts))), ids, lengths, needs)
    rows = torch.arange(ids.shape[1]) < torch.tensor([[len(prompt)] for prompt in prompts])
    return found.logits, {name: states[rows] for name, states in found.hidden.items()}


def close(found, wanted):
    """Equal but for float32's last digits, measured by the largest number."""
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1)


@pytest.fixture(scope="module")
def origin():
    return Target(make_model(**SMALL))


@pytest.mark.parametrize("shape", SHAPES_TRIED)
def test_logits_and_states_are_the_origins(origin, shape):
    twin = make_twin(origin, SHAPES_TRIED[shape])
    layers, deep = (2, 4, 5), twin.config.num_hidden_layers
    wanted, states = read(origin, layers)
    found, twin_states = read(twin, (2, deep // 2, deep - 3))
    close(found[:, :97], wanted)
    assert (found[:, 97:] < FAR / 2).all()
    for own, other in zip(("last", *layers), ("last", 2, deep // 2, deep - 3)):
        close(twin_states[other][:, :64], states[own])
        assert not twin_states[other][:, 64:].any()


@pytest.mark.parametrize("kind", MODELS_TRIED)
def test_other_llamas(kind):
    origin = Target(make_model(**{**SMALL, **MODELS_TRIED[kind]}))
    twin = make_twin(origin, Shape(256, 9, 200, 150))
    assert not twin.config.tie_word_embeddings
    close(read(twin)[0][:, :97], read(origin)[0])


def test_only_the_corner_counts(origin):
    first, second = (make_twin(origin, SHAPES_TRIED["own heads"], seed) for seed in (0, 1))
    pairs = list(zip(first.model.parameters(), second.model.parameters()))
    assert sum(not torch.equal(a, b) for a, b in pairs) >= 5 * 12
    assert torch.equal(read(first)[0][:, :97], read(second)[0][:, :97])


def test_what_is_outside_is_read_and_not_zero(origin):
    """Every matrix but those that make hidden states is full of random numbers."""
    model = make_twin(origin, SHAPES_TRIED["own heads"]).model
    places = layer_places(8, 12)
    for name, weight in model.named_parameters():
        if any(part in name for part in ("o_proj", "down_proj", "embed_tokens", "norm", "bias")):
            continue
        zeros = (weight == 0).float().mean().item()
        spare = "q_proj" in name and int(name.split(".")[2]) in places
        assert zeros == pytest.approx(0.75 if spare else 0, abs=1e-3)  # 16 of 64 in a head


def test_a_query_finds_its_own_keys():
    for small in ((6, 2), (4, 4), (8, 1), (12, 3), (5, 5)):
        for large in ((32, 32), (64, 8), (48, 12), (64, 16)):
            queries, keys = head_places(small, large)
            assert sorted(queries.values()) == list(range(small[0]))
            group, room = small[0] // small[1], large[0] // large[1]
            for place, head in queries.items():
                assert keys[place // room] == head // group


def test_layers_that_heads_read_stand_where_they_look():
    for small in range(1, 20):
        for large in range(small, 90):
            places = layer_places(small, large)
            assert list(places.values()) == list(range(small))
            assert list(places) == sorted(places) and max(places) < large
            if small < 8:
                continue
            pairs = ((2, 2), (small // 2, large // 2), (small - 3, large - 3))
            for own, deep in pairs:  # as many layers before one's input as before the other's
                assert sum(place < deep for place in places) == own


def test_exits_of_a_twin(origin):
    twin = Twin(origin, Shape(256, 32, 512, 300), "test")
    assert [twin.depth_of(layers) for layers in (2, 4, 5, 8)] == [2, 16, 29, 32]


class Allocations(TorchDispatchMode):
    """The largest tensor made off the meta device."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize(
    "name, billions", [("7b", 6.738415616), ("13b", 13.015864320), ("70b", 68.976648192)]
)
def test_paper_sizes_are_built_where_they_are_used(origin, name, billions):
    """On the meta device, which has no storage: nothing large is made on the host either."""
    twin = Twin(origin, SHAPES[name], name)
    with Allocations() as made:
        model = twin.model(torch.bfloat16, torch.device("meta"))
    assert all(weight.is_meta for weight in model.parameters())
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    weights = [weight for key, weight in model.named_parameters() if not key.endswith("bias")]
    assert sum(weight.numel() for weight in weights) == round(billions * 1e9)
    assert made.largest < 1e5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_near(origin, dtype):
    twin = make_twin(origin, SHAPES_TRIED["grouped"], dtype=dtype)
    found, wanted = read(twin)[0][:, :97].float(), read(origin)[0]
    assert found.isfinite().all() and twin.dtype == dtype
    similar = torch.nn.functional.cosine_similarity(found, wanted)
    assert similar.min() > 0.99


def test_ids_that_the_origin_lacks_have_no_probability(origin):
    logits = read(make_twin(origin, SHAPES_TRIED["own heads"]))[0]
    for temperature in (1.0, 80.0):
        probs = Sampler(temperature=temperature).warp(logits)
        assert not probs[:, 97:].any()
        close(probs[:, :97], Sampler(temperature=temperature).warp(logits[:, :97]))


def test_offloaded_layers_are_the_twins(model_dir):
    shape = "256x5x200x300"
    plain = load_target(model_dir, "float32", "cpu", "eager", scale_to=shape)
    offload = Offload("ram")
    streamed = load_target(model_dir, "float32", "cpu", "eager", offload=offload, scale_to=shape)
    assert streamed.facts()["offload_host_bytes"] > 4 * 5 * 256 * 600
    assert torch.equal(read(streamed)[0], read(plain)[0])


class Minis:
    """The mini target, its twin, and two held-out prompts."""

    def __init__(self):
        path = str(MINI / "target")
        self.target = load_target(path, "float32", "cpu", "eager")
        self.twin = load_target(path, "float32", "cpu", "eager", scale_to=SCALE)
        prompter, self.stop, questions = mini_bench()
        chosen = questions[0], questions[-1]
        self.some = [prompter.render(question["turns"][:1], []) for question in chosen]

    def run(self, method, path):
        """(ids, accept lengths) of the mini target, and of its twin."""
        flags = mini_flags(method) if method != "space" else []
        scaled = ["--scale-to", SCALE]
        if method in WITH_DRAFT:
            scaled += ["--draft-scale-to", DRAFT_SCALE]
        targets = self.target, self.twin
        if method == "space":
            targets = [
                load_target(path, "float32", "cpu", "eager", scale_to=size)
                for size in (None, SCALE)
            ]
        found = []
        for target, more in zip(targets, ([], scaled)):
            drafter = build(method, path, target, [*flags, *more])
            found.append(decode(target, drafter, self.some, self.stop, 24, 2))
        return found


@pytest.fixture(scope="module")
def minis():
    return Minis()


METHODS_TRIED = ["vanilla", "medusa", "hydra", "eagle", "eagle2", "eagle3", "space", *WITH_DRAFT]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS_TRIED)
def test_twins_of_all_drafts_accept_what_the_minis_do(method, minis):
    path = str(MINI / ("space" if method == "space" else "target"))
    (ids, accepted), (twin_ids, twin_accepted) = minis.run(method, path)
    assert twin_ids == ids and twin_accepted == accepted
    steps = [length for lengths in accepted for length in lengths]
    assert max(steps) == 1 if method == "vanilla" else max(steps) >= 3


@pytest.mark.parametrize("method", ["medusa", "hydra", "eagle", "eagle3", "specdecpp"])
def test_heads_are_as_large_as_the_published(method, minis, monkeypatch):
    """One layer of the target's shape, Medusa's and Hydra's matrices; and nothing else counts."""
    path, drafters = str(MINI / "target"), []
    for seed in (0, 1):
        monkeypatch.setattr(minis.twin.twin, "seed", seed)
        scaled = ["--scale-to", SCALE]
        scaled += ["--draft-scale-to", DRAFT_SCALE] if method in WITH_DRAFT else []
        drafters.append(build(method, path, minis.twin, [*mini_flags(method), *scaled]))
    runs = [decode(minis.twin, drafter, minis.some[:1], minis.stop, 16) for drafter in drafters]
    assert runs[0] == runs[1]
    modules = [head_of(drafter) for drafter in drafters]
    if method != "specdecpp":  # whose head makes hidden states and two numbers
        weights = [list(module.parameters()) for module in modules]
        assert not all(torch.equal(a, b) for a, b in zip(*weights))
    hidden, inner, vocab = 512, 1024, 2100
    layer = 4 * hidden**2 + 3 * hidden * inner
    block = hidden**2 + hidden
    mlps = sum(2 * ((i + 2) * hidden**2 + hidden) + block for i in range(4))
    wanted = {
        "medusa": 4 * (block + hidden * vocab + vocab),
        "hydra": layer + 3 * hidden + mlps + 4 * (hidden * vocab + vocab),
        "eagle": 2 * hidden**2 + layer + hidden,
        "eagle3": 6 * hidden**2 + layer + 4 * hidden + hidden * vocab + vocab,
        "specdecpp": 256 * 256 + 256 + 2 * 256 + 2,
    }
    found = sum(weight.numel() for weight in modules[0].parameters())
    assert found == wanted[method]


@pytest.mark.parametrize("layers, deep", [(1, 4), (2, 8), (3, 12)])
def test_a_draft_says_the_same_at_its_exits(layers, deep, model_dir):
    """The tiny target as its own draft; its 3 layers become 12."""
    flags = ["--drafter-path", model_dir, "--exits", str(layers), "--thresholds", "0"]
    scaled = ["--scale-to", "256x4x200x300", "--draft-scale-to", "128x12x100x300"]
    prompts, runs, logits = make_prompts(3), [], []
    lengths = [len(prompt) for prompt in prompts]
    for size, more in ((None, []), (scaled[1], scaled)):
        target = load_target(model_dir, "float32", "cpu", "eager", scale_to=size)
        drafter = build("sd2", model_dir, target, [*flags, "--draft", "chain", *more])
        runs.append(decode(target, drafter, prompts, StopRules(), 20))
        draft, ids = drafter.model, pad_right(prompts, torch.device("cpu"))
        draft.reserve(3, 80)
        draft.prefill([0, 1, 2], ids, lengths)
        logits.append(draft.read(torch.tensor([[7], [8], [9]]), [True] * 3)[0])
    assert draft.exits == [deep]
    close(logits[1][..., : logits[0].shape[-1]], logits[0])
    assert runs[0] == runs[1] and (layers < 3 or max(map(max, runs[0][1])) >= 3)


def head_of(drafter):
    """The module of a drafter's head."""
    if hasattr(drafter, "heads"):
        return drafter.heads
    head = drafter.head
    return head.__self__ if hasattr(head, "__self__") else head.module


def test_a_head_of_its_own_width_is_refused(origin):
    twin = Twin(origin, Shape(256, 9, 512, 400), "test")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=97)
    with pytest.raises(BadInput, match="32 wide, unlike its target"):
        twin.head(torch.nn.Linear(1, 1), config, None, {}, ())


REFUSED = {
    "32x12x512": "hidden size of .*64, does not fit into 32",
    "256x2x512": "number of layers of .*3, does not fit into 2",
    "256x4x64": "inner size of .*96, does not fit into 64",
    "256x4x128x96": "vocabulary of .*258, does not fit into 96",
    "136x4x128": "attention heads that do not fit: 4 .2 for keys. of 16 numbers into none",
    "48x4x128": "hidden size",
    "7": "7: 68m, .*is needed",
}


@pytest.mark.parametrize("shape", REFUSED)
def test_shapes_that_do_not_fit_are_refused(shape, model_dir):
    with pytest.raises(BadInput, match=REFUSED[shape]) as refused:
        load_target(model_dir, "float32", "cpu", "eager", scale_to=shape)
    assert "\n" not in str(refused.value)


def test_models_that_cannot_be_scaled_are_refused():
    yarn = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 2.0}
    for model, message in (
        (make_model("qwen3"), "qwen3"),
        (make_model(rope_parameters=yarn), "RoPE of type yarn"),
    ):
        with pytest.raises(BadInput, match=message):
            large_config(model.config, SHAPES["7b"], 32, "--scale-to 7b")
    with pytest.raises(NotImplementedError, match="no rule"):
        twin_module.kind_of("layers.0.self_attn.new_proj", {})


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--scale-to", "7q"], "7q: 68m"),
        (["--scale-to", "7b", *["--num-gpus-per-model", "2", "--num-gpus-total", "2"]], "exclude"),
        (["--draft-scale-to", "68m"], "needs --scale-to"),
        (["--scale-to", "32x4x512"], "does not fit"),
    ],
)
def test_flags_are_refused_in_one_line(flags, message, paths, capfd):
    draft = ["--drafter-path", paths["draft"]]
    assert message in refused(capfd, paths, *draft, *flags, method="sps")


def test_draft_models_follow_their_target():
    class Args:
        scale_to, draft_scale_to = None, None

    assert draft_shape(Args) is None
    Args.scale_to = "13b"
    assert draft_shape(Args) == "68m" and draft_shape(Args, "1b") == "1b"
    Args.scale_to = "70b"
    assert draft_shape(Args) == "7b"
    Args.draft_scale_to = "13b"
    assert draft_shape(Args) == draft_shape(Args, "1b") == "13b"
    assert read_shape("7b").hidden == 4096 and read_shape("512x12x1024").vocab == 32000


def test_answer_files_and_tables_say_that_it_is_a_twin(paths):
    scale, small = ["--scale-to", "256x4x200x300"], ["--draft-scale-to", "128x2x100x300"]
    draft, files = ["--drafter-path", paths["draft"]], {}

    def facts(name, method, *flags):
        files[name] = paths["tmp"] / f"{name}.jsonl"
        records = answer(method, paths["model"], paths["questions"], files[name], *flags)
        choices = [record["choices"][0] for record in records]
        return [[choice[key] for choice in choices] for key in ("output_ids", "accept_lengths")]

    base = facts("base", "vanilla", *scale)
    twins = facts("sps", "sps", *draft, *scale, *small)
    assert twins == facts("plain", "sps", *draft) and twins[0] == base[0]
    meta = read_meta(files["sps"])
    assert meta["shared"]["scale_to"] == scale[1] and "-twin-256x4x200x300-" in meta["model_id"]
    assert meta["method_args"]["draft_scale_to"] == small[1]
    assert read_meta(files["plain"])["shared"]["scale_to"] is None
    speed = "evaluation/speed.py", "--base-path", files["base"], "--file-path"
    done = run_tool(*speed, files["sps"])
    label = f"(twin of {meta['shared']['target']} at 256x4x200x300)"
    assert done.returncode == 0 and label in done.stdout
    assert label in report_of(done)["results"][0]["method"]["label"]
    done = run_tool(*speed, files["plain"])
    assert done.returncode == 2 and "scale_to: null" in done.stderr
