"""A small model's twin: the same function at the size, and so at the cost, of a large model.

The small model's numbers stand in the corner of large tensors. What makes the functions equal:

* Hidden states are zero beyond the small model's width h of H: embedding, o_proj, down_proj and
  every other matrix that makes a hidden state are zero outside the corner. A mean of squares is
  h / H of the small one, so norms have eps h / H and weights sqrt(h / H).
* A head of d numbers becomes one of D: RoPE's pair j goes to pair j D / d, which turns at the same
  rate; queries carry sqrt(D / d), because scores are divided by sqrt(D), and are zero in the other
  places of a head.
* Layers that the small model does not have add zero; corner.layer_places says where they are.
* Output matrices have a bias: FAR for the ids that the small model does not have, so that their
  probability is 0 in float32 at any temperature below 90, else 0. It is one number per id beside a
  row of H.

All else is random and read like trained weights, and changes nothing. One thing is not as in a
trained model: zeros, in o_proj and down_proj and in most of a hidden state. Reading them takes as
long; a GPU at its power limit draws less for them and may run compute-bound passes faster.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from model.common.errors import BadInput
from model.common.target.products import undecided
from model.common.target.twin.corner import Corner, head_places, heads_of, layer_places
from model.common.target.twin.shapes import HEAD_SIZES, Shape, read_shape

ROPE_TYPES = ("default", "linear", "llama3")  # whose rates do not depend on the size of a head
LLAMA = {  # a submodule's name -> its kind in corner.KINDS
    r"(.*\.)?q_proj": "query",
    r"(.*\.)?[kv]_proj": "key",
    r"(.*\.)?o_proj": "attended",
    r"(.*\.)?(gate|up)_proj": "inner",
    r"(.*\.)?down_proj": "folded",
    r"(.*[._])?(layer)?norm": "norm",
    r"(.*\.)?embed_tokens": "embedding",
    r"(.*\.)?lm_head": "output",
}


def grow(small: nn.Module, large: nn.Module, corner: Corner, kinds: dict, place) -> nn.Module:
    """Fill a large module, built on the meta device, weight by weight where it will be used.

    kinds  {pattern of a submodule's name: name in KINDS}, beside LLAMA's
    place  (device, dtype, seed); no number outside the corner counts, whatever the seed
    """
    device, dtype, seed = place
    generator = None
    if device.type != "meta":
        generator = torch.Generator(device).manual_seed(seed)
    layers = None
    if hasattr(large, "get_decoder"):
        layers = layer_places(corner.small.num_hidden_layers, corner.large.num_hidden_layers)
    tensors = dict(small.named_parameters(remove_duplicate=False))
    for name, module in large.named_modules():
        if not module._parameters:
            continue
        kind = kind_of(name, kinds)
        origin = small_name(name, layers)
        source, source_bias = (tensors.get(f"{origin}.{part}") for part in ("weight", "bias"))
        weight = torch.empty(module.weight.shape, dtype=dtype, device=device)
        corner.weight(kind, source, weight, generator)
        module.weight = nn.Parameter(weight, requires_grad=False)
        num_rows = len(weight) if source is None else len(source)
        bias = getattr(module, "bias", None)
        if bias is not None or (kind == "output" and num_rows < len(weight)):
            bias = torch.empty(len(weight), dtype=dtype, device=device)
            corner.bias(kind, source_bias, bias, num_rows)
            module.bias = nn.Parameter(bias, requires_grad=False)
    return large.eval()


def kind_of(name: str, kinds: dict) -> str:
    """The kind of a submodule's weight, by its name."""
    for pattern, kind in {**kinds, **LLAMA}.items():
        if re.fullmatch(pattern, name):
            return kind
    raise NotImplementedError(f"{name}: no rule for a larger {name}")


def small_name(name: str, layers: dict[int, int] | None) -> str | None:
    """The small model's name of a large model's module, None = a layer that it does not have.

    layers: of layer_places(), None = the small one has them all.
    """
    found = re.fullmatch(r"(.*\.layers\.)(\d+)(\..*)", name)
    if not found or layers is None:
        return name
    before, layer, after = found.groups()
    return f"{before}{layers[int(layer)]}{after}" if int(layer) in layers else None


def large_config(small, shape: Shape, layers: int, flag: str):
    """A Llama config of a shape for the function of a small one; what does not fit is refused."""
    name = getattr(small, "name_or_path", "") or "the model"
    if small.model_type != "llama":
        raise BadInput(f"{flag}: {name} is a {small.model_type} model; only llama can be scaled")
    rope = (small.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise BadInput(f"{flag}: {name} has RoPE of type {rope}, only {ROPE_TYPES} can be scaled")
    for what, found, room in (
        ("hidden size", small.hidden_size, shape.hidden),
        ("number of layers", small.num_hidden_layers, layers),
        ("inner size", small.intermediate_size, shape.inner),
        ("vocabulary", small.vocab_size, shape.vocab),
    ):
        if found > room:
            raise BadInput(f"{flag}: the {what} of {name}, {found}, does not fit into {room}")
    heads, kv_heads = fitting_heads(small, shape, f"{flag}: {name}")
    changes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": layers,
        "intermediate_size": shape.inner,
        "vocab_size": shape.vocab,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": shape.hidden // heads,
        "rms_norm_eps": small.rms_norm_eps * small.hidden_size / shape.hidden,
        "tie_word_embeddings": False,
    }
    return type(small).from_dict({**small.to_dict(), **changes})


def fitting_heads(small, shape: Shape, who: str) -> tuple[int, int]:
    """(query, key-value heads) of a shape, the largest ones that fit where it names none."""
    choices = [(shape.heads, shape.kv_heads)]
    if shape.heads is None:
        choices = [(shape.hidden // d,) * 2 for d in HEAD_SIZES if shape.hidden % d == 0]
    for heads, kv_heads in choices:
        if shape.hidden // heads % small.head_dim:
            continue
        queries, keys = head_places(heads_of(small), (heads, kv_heads))
        if max(queries) < heads and max(keys) < kv_heads:
            return heads, kv_heads
    sizes = ", ".join(f"{heads} of {shape.hidden // heads}" for heads, _ in choices) or "none"
    found = f"{heads_of(small)[0]} ({heads_of(small)[1]} for keys) of {small.head_dim} numbers"
    raise BadInput(f"{who} has attention heads that do not fit: {found} into {sizes}")


class Twin:
    """What makes a Target another one's twin.

    origin  Target that it is a twin of, in float32 on the CPU; what heads were trained for
    shape   of the twin; heads become as wide, and one layer of them as large
    """

    def __init__(self, origin, shape: Shape, name: str, seed: int = 0):
        self.origin, self.shape, self.name, self.seed = origin, shape, name, seed

    def model(self, dtype, device):
        """The large transformers model, filled on the device layer by layer."""
        from transformers import AutoModelForCausalLM

        small = self.origin.model
        flag = f"scaling to {self.name}"
        config = large_config(small.config, self.shape, self.shape.layers, flag)
        with torch.device("meta"):
            large = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=small.config._attn_implementation
            )
        decoder = large.get_decoder()
        decoder.rotary_emb = type(decoder.rotary_emb)(config).to(device)
        large.generation_config = small.generation_config
        corner = Corner(small.config, config)
        return grow(small, large, corner, {}, (torch.device(device), dtype, self.seed))

    def depth_of(self, layers: int) -> int:
        """Layers of the twin after which its state is the origin's after so many."""
        own = self.origin.config.num_hidden_layers
        if layers == own:
            return self.shape.layers
        places = layer_places(own, self.shape.layers)
        return next(place for place, layer in places.items() if layer == layers)

    def head(self, small: nn.Module, config, make, kinds: dict, place):
        """(module, config) of a head, given as loaded for the origin; see Target.grown()."""
        flag = f"a head at {self.name}"
        config, own = large_config(config, self.shape, config.num_hidden_layers, flag), config
        if own.hidden_size != self.origin.config.hidden_size:
            raise BadInput(f"{flag}: it is {own.hidden_size} wide, unlike its target")
        with torch.device("meta"):
            large = make(config)
        return grow(small, large, Corner(own, config), kinds, (*place, self.seed)), config


def load_twin(path: str, dtype: str, device: torch.device, name: str):
    """(model, Twin) of a model directory or hub id at the shape of a name or its numbers."""
    from model.common.target.loading import load_target
    from model.common.target.quantised import refuse_quantised

    try:
        shape = read_shape(name)
    except ValueError as error:
        raise BadInput(f"scale to {error}") from error
    with undecided():
        origin = load_target(path, "float32", "cpu", "eager")
    refuse_quantised(origin.model, f"{path}: a twin")
    twin = Twin(origin, shape, name)
    return twin.model(getattr(torch, dtype), device), twin
