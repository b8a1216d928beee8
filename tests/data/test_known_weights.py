"""Weights that flags find by themselves: those of the project are there, and say what they are."""

import importlib
import json

import pytest

from model.common.args import ROOT, make_parser

SCRIPTS = sorted(ROOT.glob("model/*/inference_*.py"))


def known_weights():
    """{(method, flag, target): folder} of all flags whose weights come with the project."""
    found = {}
    for script in SCRIPTS:
        method = script.parent.name
        if method == "engine":
            continue
        module = importlib.import_module(f"model.{method}.{script.stem}")
        for action in make_parser(method, "", module.add_args)._actions:
            for target, path in (getattr(action, "known_weights", None) or {}).items():
                if path.startswith(str(ROOT)):
                    found[method, action.option_strings[0], target] = path
    return found


KNOWN = known_weights()


@pytest.mark.parametrize("name", KNOWN, ids=lambda name: "-".join(name))
def test_they_are_there_with_a_card(name):
    from pathlib import Path

    folder = Path(KNOWN[name])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.pt")]
    assert max(file.stat().st_size for file in weights) > 1000
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "/tmp" not in card and "/work" not in card


def test_a_published_model_has_heads():
    assert {method for method, _, target in KNOWN if target == "smollm2"} >= {
        "eagle",
        "eagle2",
        "eagle3",
    }


def test_heads_of_smollm2_fit_its_config():
    """Widths, heads and vocabulary of the published model, which is not in the repository."""
    from safetensors import safe_open

    for method, width_of_fc in (("eagle", 2), ("eagle3", 3)):
        folder = ROOT / "data" / "heads" / "smollm2" / method
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert (config["hidden_size"], config["vocab_size"]) == (576, 49152)
        with safe_open(folder / "model.safetensors", "pt") as tensors:
            shape = tensors.get_slice("fc.weight").get_shape()
            assert shape == [576, 576 * width_of_fc]
