"""SPACE's training of a model in memory."""

from types import SimpleNamespace

import pytest

from model.common.training.features import FrozenTarget
from model.space import train as script


def new_method(model, **flags):
    """Its SpaceTraining with three masks, 90, 91 and 92; it has no tokenizer."""
    args = {"mask_num": 3, "mask_id": [90, 91, 92], "mask_prob": 1.0, "mask_loss_weight": 1.0}
    args |= {"scheme": "append", "num_groups": 2, "separate_masks": False, "features": "compute"}
    args |= {"gradient_checkpointing": False, "model_path": "m", **flags}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.common.prompts.prompter.load_tokenizer", lambda path: None)
        return script.SpaceTraining(SimpleNamespace(**args), FrozenTarget(model), None)
