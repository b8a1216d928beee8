"""SPACE's flags: which masks are used, and what is refused."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from harness_runs import COMMON, ROOT, refusal, run

from model.common import args as arguments
from model.common.errors import BadInput
from model.space import inference_space as script
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
    "config, ids, num, message",
    [
        (Config(), None, None, "config.json has no space_mask_ids; --mask-id N"),
        (Config(), [40], None, "--mask-id 40: the model's vocabulary has 40 ids"),
        (Config(), [3, 99], 2, "--mask-id 99"),
        (Config(), [1, 2], 3, "--mask-num 3: there are mask ids for 2 places only"),
        (Config(space_mask_ids=[44]), None, None, "--mask-id 44"),
        (Config(space_mask_ids="ab"), None, None, "space_mask_ids is 'ab', not a list of ids"),
        (Config(space_mask_ids=[1.5]), None, None, "not a list of ids"),
    ],
)
def test_unusable_masks_are_bad_input(config, ids, num, message):
    with pytest.raises(BadInput, match=message):
        read_masks(config, ids, num)


def build(config, *flags):
    """The drafter of a command line for a model of this config."""
    parser = arguments.make_parser("space", script.__doc__, script.add_args)
    args = parser.parse_args(["--model-path", "x", *flags])
    target = SimpleNamespace(model=SimpleNamespace(config=config), device=torch.device("cpu"))
    return script.build(args, target)


def test_build_reads_the_models_config():
    assert build(Config(), "--mask-id", "9", "--mask-num", "2").mask_ids.tolist() == [9, 9]
    assert build(Config(space_mask_ids=[5], space_mask_num=3)).max_depth == 3
    with pytest.raises(BadInput, match="no space_mask_ids"):
        build(Config())


def test_the_published_models_mask_is_known():
    config = Config(vocab_size=32003)
    published = ["--model-path", "AntMan/vicuna-v1.3-7b-space"]
    assert build(config, *published).mask_ids.tolist() == [32002] * 5
    assert build(config, *published, "--mask-id", "7").mask_ids.tolist() == [7] * 5


@pytest.mark.parametrize("flags", [["--mask-num", "0"], ["--mask-id", "-1"], ["--mask-id"]])
def test_flags_out_of_range(flags, capsys):
    with pytest.raises(SystemExit) as error:
        build(Config(), *flags)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert flags[0] in message and message.count("\n") == 1


def test_a_mask_outside_the_vocabulary_is_one_line(model_dir, question_file, tmp_path, capfd):
    where = ["--model-path", model_dir, "--question-file", question_file, *COMMON]
    code = run("space", *where, "--mask-id", "32002", "--answer-file", tmp_path / "a.jsonl")
    message = "inference_space: --mask-id 32002: the model's vocabulary has 258 ids\n"
    assert refusal(capfd, code) == message


def test_light_imports():
    code = "import sys, model.space.inference_space; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
