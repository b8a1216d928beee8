"""What the tests of MTP share: tiny targets of its families with a random head inside."""

import functools
import sys
import tempfile
from pathlib import Path

import torch
from mtp_dirs import add_head

from model.common.errors import Unsupported
from model.common.loop.sampling import Sampler
from model.common.target.loading import load_model, load_plain
from model.common.target.model import Target
from model.mtp.drafter import MtpDrafter
from model.mtp.head import load_mtp

sys.path.append(str(Path(__file__).resolve().parents[2] / "families"))

FAMILIES = {  # on our cache, and as chains on transformers' own
    "llama": "deepseek",
    "deepseek_v3": "deepseek",
    "glm4_moe": "deepseek",
    "qwen2": "mimo",
    "qwen3": "speculators",
    "qwen3_next": "qwen",
    "qwen3_5_text": "qwen",
    "qwen3_5_moe_text": "qwen",
}
OWN_CACHE = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
VOCABULARY = 17  # so that random heads are right now and then
_folders: list = []


@functools.cache
def checkpoint(family: str) -> str:
    """A directory of a tiny random target that has a head in its own files."""
    from tiny_families import random_model, small_config
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    _folders.append(tempfile.TemporaryDirectory(prefix="mtp-"))
    folder = _folders[-1].name
    config = small_config(CONFIG_MAPPING[family])
    config.vocab_size = VOCABULARY
    if hasattr(config, "num_nextn_predict_layers"):
        config.num_nextn_predict_layers = 1
    model = random_model(config, AutoModelForCausalLM)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # of unlike weights, else pre- and post-norm states say the same
        final = model.get_decoder().norm.weight
        final.add_(0.3 * torch.randn(final.shape, generator=generator))
    model.save_pretrained(folder)
    return add_head(folder, FAMILIES[family])


@functools.cache
def target_of(family: str):
    """Its Target in float64, in which near-ties do not reorder candidates."""
    folder = checkpoint(family)
    try:
        model = load_model(folder, "float64", "cpu")
        model.set_experts_implementation("eager")  # grouped products know no float64
        return Target(model)
    except Unsupported:
        target = load_plain(folder, "float64", "cpu")
        target.model.set_experts_implementation("eager")
        return target


@functools.cache
def plain_model(family: str):
    """transformers' own, in float64."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float64)
    model.set_experts_implementation("eager")
    return model.eval()


def drafter_of(family: str, num_draft: int = 3, **states):
    """A drafter with the target's own head; states: target_state, chained_state."""
    target = target_of(family)
    return MtpDrafter(load_mtp(checkpoint(family), target, **states), num_draft)


def prompts():
    """Ragged prompts."""
    generator = torch.Generator().manual_seed(0)
    lengths = (5, 14, 3)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def sampled() -> Sampler:
    """Of temperature 1, where a law is a softmax."""
    return Sampler(1.0)
