"""What the tests of EAGLE's versions share: tiny targets and the three kinds."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from conftest import SHAPE, make_model, make_prompts
from eagle_dirs import eagle3_dir, eagle_dir, peagle_dir
from eagle_slow import SlowHead, differing, dynamic_paths, static_paths

from model.common import args as arguments
from model.common.contract.static_tree import StaticTree, read_tree
from model.common.heads.checkpoint import Checkpoint
from model.common.target.model import Target
from model.common.target.runtime import make_runtime
from model.eagle import inference_eagle
from model.eagle.drafter import StaticEagleDrafter
from model.eagle.head import load_eagle
from model.eagle2.drafter import DynamicEagleDrafter
from model.eagle3.head import load_eagle3

LOOPY = {"vocab_size": 17, "num_hidden_layers": 2}
DEEP = {**LOOPY, "num_hidden_layers": 8}  # enough for EAGLE-3
SMALL_TREE = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (0, 1, 0), (0, 1, 1)]
PUBLISHED_TREE = read_tree("mc_sim_7b_63", Path(inference_eagle.__file__).parent / "trees", 32000)
SMALL_SIZE, PUBLISHED_SIZE = (14, 3, 4), (59, 5, 10)  # nodes, depth, top k
SMALL_VOCAB = 11  # of 17 ids
FAULTS = ("order", "norm", "features", "shift", "position")


def config_dir(folder, **shape):
    """A directory with a config.json that says a target's shape, for eagle_dirs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SHAPE, **LOOPY, **shape}))
    return str(folder)


def tiny_model(**shape):
    """A random target whose answers vary."""
    return make_model(**{**LOOPY, **shape})


def loopy_prompts(num=4):
    return make_prompts(num, vocab_size=17)


def parsed(script, method, *flags):
    """A script's arguments."""
    parser = arguments.make_parser(method, script.__doc__, script.add_args)
    return parser.parse_args(["--model-path", "x", *map(str, flags)])


class Kind(NamedTuple):
    """A version of EAGLE: target's shape, how heads are written and read, faults of eagle_slow.

    layout  of a small tree: paths of ranks, or (nodes, depth, top k)
    """

    version: int
    shape: dict
    layout: list | tuple
    faults: tuple

    @property
    def load(self):
        """(folder, target, ...) -> head."""
        return load_eagle3 if self.version == 3 else load_eagle

    def new_head(self, folder, **changes):
        """A random head for tiny_model(), EAGLE-3's over 11 of its 17 tokens."""
        path = config_dir(Path(folder) / "target")
        if self.version == 3:
            changes = {"draft_vocab": SMALL_VOCAB, **changes}
            return eagle3_dir(Path(folder) / "head", path, **changes)
        return eagle_dir(Path(folder) / "head", path, **changes)

    def drafter(self, head, layout=None):
        layout = layout or self.layout
        if self.version == 1:
            return StaticEagleDrafter(head, StaticTree(layout, "cpu"))
        return DynamicEagleDrafter(head, *layout)

    def slow_steps(self, recording, model, folder, fault=None, layout=None, layers=None):
        """(drafts that the slow reference does not draft, drafts)."""
        layout = layout or self.layout
        slow = SlowHead(folder, model, self.version, fault, layers)
        if self.version == 1:
            return differing(recording, slow, lambda best: static_paths(best, layout))
        return differing(recording, slow, lambda best: dynamic_paths(best, *layout))


KINDS = {
    "eagle": Kind(1, LOOPY, SMALL_TREE, FAULTS),
    "eagle2": Kind(2, LOOPY, SMALL_SIZE, FAULTS),
    "eagle3": Kind(3, DEEP, SMALL_SIZE, (*FAULTS, "normed", "ids")),
}


@functools.cache
def target_of(name, dtype=torch.float64):
    """A tiny target for a kind; in float64 near-ties do not reorder candidates."""
    return Target(tiny_model(**KINDS[name].shape, dtype=dtype))


def new_peagle(folder, **changes):
    """A random P-EAGLE head for tiny_model(**DEEP), over 11 of its 17 tokens."""
    path = config_dir(Path(folder) / "target")
    return peagle_dir(Path(folder) / "head", path, **{"draft_vocab": SMALL_VOCAB, **changes})


# --- published files, on the meta device ---


def published_tensors(shapes, fields, dtype):
    """Tensors of a file without their numbers; the maps cover the first ids."""
    tensors = {n: torch.empty(s, dtype=dtype, device="meta") for n, s in shapes.items()}
    if "d2t" in shapes:
        covered = torch.arange(fields["vocab_size"]) < fields["draft_vocab_size"]
        tensors |= {"d2t": torch.zeros(shapes["d2t"], dtype=torch.long), "t2d": covered}
    return tensors


def open_published(patch, config, tensors):
    """Have every checkpoint be this one."""

    def opened(self, path, names, prefix=""):
        self.path, self.file = path, f"{path}/pytorch_model.bin"
        self.config, self.tensors = config, tensors

    patch.setattr(Checkpoint, "__init__", opened)


def meta_target(fields, num_layers):
    """What a loader of heads asks of a target whose widths are a head's."""
    width, vocab = fields["hidden_size"], fields["vocab_size"]
    device = torch.device("meta")
    with device:
        embedding, lm_head = torch.nn.Embedding(vocab, width), torch.nn.Linear(width, vocab, False)
    target = SimpleNamespace(
        config=SimpleNamespace(hidden_size=width, num_hidden_layers=num_layers),
        vocab_size=vocab,
        dtype=torch.float16,
        device=device,
        model=SimpleNamespace(
            get_input_embeddings=lambda: embedding, get_output_embeddings=lambda: lm_head
        ),
        runtime=make_runtime("eager", device),
        twin=None,
        grown=lambda *head: Target.grown(target, *head),
    )
    target.origin = target
    return target
