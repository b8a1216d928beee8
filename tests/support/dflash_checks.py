"""What the tests of block drafters share: a tiny target, heads of every kind."""

import functools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from conformance.cases import PROMPTS
from conftest import SHAPE as TINY_SHAPE
from conftest import make_model, make_prompts
from dflash_dirs import DFLASH2, block_dir
from recording import Recording

from model.common.contract.drafter import Needs
from model.common.heads.checkpoint import Checkpoint
from model.common.target.model import Target
from model.common.target.runtime import make_runtime
from model.dflash import head as heads

SHAPE = {"vocab_size": 17, "num_hidden_layers": 3}
SLIDING = ["sliding_attention", "full_attention"]
KINDS = {  # fields of heads' configs
    "plain": {},
    "three states": {"target_layer_ids": [1, -1, 0]},
    "one layer": {"num_hidden_layers": 1, "block_size": 2},
    "from anchor": {"sample_from_anchor": True, "block_size": 4},
    "sliding": {"layer_types": SLIDING, "sliding_window": 6},
    "sliding both ways": {"layer_types": SLIDING, "sliding_window": 6, "is_causal": False},
    "scaled": {"final_logit_softcapping": 3.0, "output_multiplier": 0.5},
    "dflash2": DFLASH2,
}


@functools.cache
def target_of(dtype=torch.float64):
    """The tiny target; in float64 near-ties do not reorder tokens."""
    return Target(make_model(**SHAPE, dtype=dtype))


@functools.cache
def plain_model():
    """transformers' model of it, with its own attention."""
    model = make_model(**SHAPE, dtype=torch.float64)
    model.set_attn_implementation("eager")
    return model


def config_dir(**shape) -> str:
    """A new directory with a config.json that says a target's shape."""
    folder = tempfile.mkdtemp()
    Path(folder, "config.json").write_text(json.dumps({**TINY_SHAPE, **shape}))
    return folder


@functools.cache
def target_config():
    """That of the tiny target."""
    return config_dir(**SHAPE)


def head_dir(seed=0, scale=0.3, **fields):
    """A random head for it."""
    return block_dir(tempfile.mkdtemp(), target_config(), seed, scale, **fields)


def prompts(num=3):
    return make_prompts(num, vocab_size=17)


# --- the cache ---


@torch.inference_mode()
def inject(head, target, ids):
    """Give a head's slot 0 all tokens of a text but the last, in one piece."""
    length = torch.tensor([len(ids) - 1])
    target.reserve(1, 256)
    needs = Needs(hidden=tuple(dict.fromkeys(head.needs)))
    found = target.prefill([0], torch.tensor([ids[:-1]]), length.tolist(), needs)
    head.reserve(1, 256)
    head.read_prompt([0], head.states_of(found.hidden), length)


def held(head, slot, num):
    """Keys and values of a slot's first columns."""
    return torch.cat([part[:, slot, :, :num] for pair in head.cache.storage for part in pair])


def check_cache(case):
    """Of every slot, before every draft: what one injection of all its tokens gives, no block."""
    texts = []

    def watch(drafter, one):
        length = len(one.ids) - 1
        assert drafter.head.cache.length[one.slot] == length
        texts.append((list(one.ids), held(drafter.head, one.slot, length).clone()))

    recording = Recording(case.build(), watch)
    case.decode(PROMPTS, 12, batch=2, drafter=recording)
    head = case.build().head
    for ids, kept in texts[::3]:
        inject(head, case.target, ids)
        assert torch.allclose(kept, held(head, 0, len(ids) - 1), atol=1e-9)
    assert len({len(ids) for ids, _ in texts}) > 8


# --- published files, on the meta device ---

QWEN = {
    **{"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "attention_bias": False},
    **{"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645},
    **{"hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 40960},
    **{"max_window_layers": 5, "rms_norm_eps": 1e-6, "rope_scaling": None, "use_cache": False},
    **{"rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False},
    **{"tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.57.0"},
    **{"auto_map": {"AutoModel": "modeling_dflash.DFlashDraftModel"}, "num_key_value_heads": 8},
    **{"head_dim": 128, "num_attention_heads": 32, "num_hidden_layers": 5, "vocab_size": 151936},
    "layer_types": ["full_attention"] * 5,
}
QWEN4 = {**QWEN, "hidden_size": 2560, "intermediate_size": 9728, "num_target_layers": 36}
EMBEDDED = ("embed_tokens.weight", "lm_head.weight")


def meta_target(width, vocab, layers):
    """What a loader asks of a target, on the meta device."""
    device = torch.device("meta")
    with device:
        embedding, lm_head = torch.nn.Embedding(vocab, width), torch.nn.Linear(width, vocab, False)
    return SimpleNamespace(
        config=SimpleNamespace(hidden_size=width, num_hidden_layers=layers),
        model=SimpleNamespace(
            get_input_embeddings=lambda: embedding, get_output_embeddings=lambda: lm_head
        ),
        **{"vocab_size": vocab, "dtype": torch.bfloat16, "device": device, "twin": None},
        runtime=make_runtime("eager", device),
    )


def open_as(monkeypatch, config, shapes):
    """Have Checkpoint find a config and tensors of these shapes."""
    tensors = {one: torch.empty(shape, device="meta") for one, shape in shapes.items()}
    if "d2t" in shapes:
        covered = torch.arange(shapes["t2d"][0]) < shapes["d2t"][0]
        tensors |= {"d2t": torch.zeros(shapes["d2t"], dtype=torch.long), "t2d": covered}

    def opened(self, path, names, prefix=""):
        self.path, self.file = path, f"{path}/model.safetensors"
        self.config, self.tensors = config, tensors

    monkeypatch.setattr(Checkpoint, "__init__", opened)
    monkeypatch.setattr(heads, "has_mask_file", lambda path: False)
    monkeypatch.setattr(heads, "is_copy", lambda weight, module: True)
