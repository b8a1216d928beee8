"""SPACE's flags: which masks are used, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from harness_runs import refused
from tiny_methods import build as build_method

from model.common.errors import BadInput
from model.space.drafter import read_masks


class Config:
    """A model's config with some fields."""

    def __init__(self, **fields):
        self.vocab_size = 40
        vars(self).update(fields)

    def get_text_config(self):
        return self


def test_masks_of_flags_and_config():
    named = Config(space_mask_ids=[38], space_mask_num=3)
    assert read_masks(named, None, None) == [38] * 3
    assert read_masks(named, None, 6) == [38] * 6
    assert read_masks(named, [2], None) == [2] * 3
    assert read_masks(Config(), [7], None) == [7] * 5
    several = Config(space_mask_ids=[35, 36, 37], space_mask_num=3)
    assert read_masks(several, None, None) == [35, 36, 37]
    assert read_masks(several, None, 2) == [35, 36]
    assert read_masks(several, [39], 2) == [39, 39]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "config.json has no space_mask_ids; --mask-id N"),
        ({"space_mask_ids": [44]}, "--mask-id 44: the model's vocabulary has 40 ids"),
        ({"space_mask_ids": "ab"}, "space_mask_ids is 'ab', not a list of ids"),
        ({"space_mask_ids": [1.5]}, "not a list of ids"),
    ],
)
def test_unusable_masks_of_a_config_are_bad_input(fields, message):
    with pytest.raises(BadInput, match=message):
        read_masks(Config(**fields), None, None)


def build(config, *flags, path="x"):
    """The drafter of a command line for a model of this config."""
    target = SimpleNamespace(model=SimpleNamespace(config=config), device=torch.device("cpu"))
    return build_method("space", path, target, flags)


def test_build_reads_flags_and_config():
    assert build(Config(), "--mask-id", "9", "--mask-num", "2").mask_ids.tolist() == [9, 9]
    assert build(Config(space_mask_ids=[5], space_mask_num=3)).max_depth == 3
    published = Config(vocab_size=32003), "AntMan/vicuna-v1.3-7b-space"
    assert build(published[0], path=published[1]).mask_ids.tolist() == [32002] * 5
    assert build(published[0], "--mask-id", "7", path=published[1]).mask_ids.tolist() == [7] * 5


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "the model's config.json has no space_mask_ids; --mask-id N names a token id"),
        (["--mask-id", 32002], "--mask-id 32002: the model's vocabulary has 258 ids"),
        (["--mask-id", 3, 999, "--mask-num", 2], "--mask-id 999"),
        (["--mask-id", 1, 2], "--mask-num 5: there are mask ids for 2 places only"),
        (["--mask-id", -1], "--mask-id"),
        (["--mask-id", 1, "--mask-num", 0], "--mask-num"),
    ],
)
def test_refusals(paths, capfd, flags, words):
    assert words in refused(capfd, paths, *flags, method="space")
