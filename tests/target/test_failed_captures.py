"""A capture that fails, of the target's step or of a drafter's function: the run's meta says so."""

import torch
from conftest import make_prompts
from harness_runs import answer, read_meta
from oracle import Chain, answers, decode, lively, outputs
from replays import Replays, with_graphs

from model.common.contract.sequence import EmptyDrafter
from model.common.target import model as target_module
from model.common.target.runtime import CudaGraphs, Runtime

PROMPTS = make_prompts(4)
CPU = torch.device("cpu")


class Failing(Replays):
    """Captures so many times, then has no memory left."""

    def __init__(self, num_good):
        super().__init__()
        self.num_good = num_good

    def __call__(self, function):
        if self.captured == self.num_good:
            raise torch.OutOfMemoryError("out of memory")
        return super().__call__(function)


def test_a_runtime_says_that_a_capture_has_failed():
    """The second shape's, which comes with the first draft; another one's function counts, too."""
    known = answers("llama")
    target, _ = with_graphs(lively("llama", torch.float32), Failing(1))
    decode(target, EmptyDrafter(), PROMPTS)
    assert target.runtime.ran == "cudagraph"
    assert outputs(decode(target, Chain(known), PROMPTS)) == [ids[:24] for ids in known]
    assert target.step.broken and target.runtime.ran == "eager in part"
    assert Runtime(CPU).ran == "eager"
    other, _ = with_graphs(lively("llama", torch.float32))
    head = CudaGraphs(CPU, Failing(0)).captured(lambda rows: rows + 1)
    assert other.runtime.ran == "cudagraph"
    assert head(torch.ones(1)).item() == 2 and other.runtime.ran == "eager in part"


def test_a_meta_says_that_a_capture_has_failed(model_dir, question_file, tmp_path, monkeypatch):
    def graphs(name, device):
        return CudaGraphs(device, Failing(0))

    monkeypatch.setattr(target_module, "make_runtime", graphs)
    out = tmp_path / "a.jsonl"
    answer("vanilla", model_dir, question_file, out, "--runtime", "cudagraph")
    assert read_meta(out)["runtime_ran"] == "eager in part"
