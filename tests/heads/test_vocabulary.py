"""A draft vocabulary: rows, ids, laws; drafts are those of the whole head over these ids."""

import pytest
import torch
from conftest import make_prompts
from harness_runs import answer, ids_of, read_meta, refused
from recording import Recording
from safetensors.torch import save_file
from tiny_methods import MINI, TINY_FLAGS, build, decode, mini_bench

from model.common.errors import BadInput
from model.common.heads.vocabulary import (
    FILE,
    DraftIds,
    frequent_ids,
    read_counts,
    some_rows,
)
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.loading import load_target

METHODS = ("eagle", "eagle2", "hydra", "medusa")


def counts_file(path, counts):
    """A file of counts, as the command writes it."""
    save_file({"counts": torch.as_tensor(counts, dtype=torch.int32)}, path)
    return str(path)


# --- parts ---


@pytest.mark.parametrize("bias", [False, True])
def test_rows_of_a_linear(bias):
    linear = torch.nn.Linear(8, 30, bias=bias)
    ids = torch.tensor([3, 7, 29])
    cut, rows = some_rows(linear, ids), torch.randn(2, 5, 8)
    assert torch.allclose(cut(rows), linear(rows)[..., ids], atol=1e-6)
    assert cut.weight.shape == (3, 8) and (cut.bias is None) is not bias
    with torch.no_grad():
        linear.weight.zero_()
    assert cut.weight.abs().min() > 0  # a copy
    assert not any(parameter.requires_grad for parameter in cut.parameters())


def test_other_output_matrices_are_refused():
    with pytest.raises(BadInput, match="--draft-vocab: .* Embedding"):
        some_rows(torch.nn.Embedding(5, 4), torch.tensor([1]))


def test_the_most_frequent():
    counts = torch.tensor([3, 0, 9, 3, 4])
    assert frequent_ids(counts, 3).tolist() == [0, 2, 4]  # of equal ones the smaller
    assert frequent_ids(counts, 5).tolist() == [0, 1, 2, 3, 4]


def test_ids_and_laws():
    draft_ids = DraftIds(torch.tensor([1, 4, 6]))
    assert draft_ids.of_target(torch.tensor([[2, 0], [-1, 1]])).tolist() == [[6, 1], [-1, 4]]
    laws = draft_ids.laws(torch.tensor([[0.5, 0.25, 0.25]]), 8)
    assert laws.tolist() == [[0, 0.5, 0, 0, 0.25, 0, 0.25, 0]]
    whole = torch.rand(2, 3)
    assert DraftIds().laws(whole, 3) is whole and DraftIds().facts() == {}


# --- drafts ---


def only(logits, ids):
    """Logits with all other ids ruled out."""
    kept = torch.full_like(logits, float("-inf"))
    kept[..., ids] = logits[..., ids]
    return kept


def rule_out(drafter, method, ids):
    """A reference: the whole head, whose logits of other ids are -inf."""
    if method in ("eagle", "eagle2"):
        whole = drafter.head.logits
        drafter.head.logits = lambda features: only(whole(features), ids)
    elif method == "hydra":
        whole = drafter.heads.guess
        drafter.heads.guess = lambda i, rows: only(whole(i, rows), ids)
    else:
        inner = drafter.heads
        drafter.heads = Masked(inner, ids)
    return drafter


class Masked(torch.nn.Module):
    """Medusa's heads, whose logits of other ids are -inf."""

    def __init__(self, inner, ids):
        super().__init__()
        self.inner, self.ids, self.draft_ids = inner, ids, DraftIds()

    def forward(self, states, num_heads):
        return only(self.inner(states, num_heads), self.ids)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_drafts_are_those_of_the_whole_head_over_these_ids(
    method, temperature, model_dir, draft_dir, tmp_path
):
    """In slots that are filled again; EAGLE's laws when sampling are the same, too."""
    target = load_target(model_dir, "float64", "cpu", "eager")
    num_ids = target.vocab_size
    counts = torch.randperm(num_ids, generator=torch.Generator().manual_seed(1))
    path, num = counts_file(tmp_path / "counts.safetensors", counts), 40
    ids = frequent_ids(counts, num)
    flags = TINY_FLAGS[method]({"target": model_dir, "draft": draft_dir})
    more = ["--draft-vocab", str(num), "--token-counts-path", path]
    drafters = [
        build(method, model_dir, target, [*flags, *more]),
        rule_out(build(method, model_dir, target, flags), method, ids),
    ]
    assert drafters[0].facts()["draft_vocab"] == num and "draft_vocab" not in drafters[1].facts()
    prompts, found = make_prompts(4, vocab_size=num_ids), []
    for drafter in drafters:
        recording = Recording(drafter)
        answers, _ = decode(
            target, recording, prompts, StopRules(), 20, batch=2, sampler=Sampler(temperature)
        )
        found.append((answers, recording.drafts))
    (answers, drafts), (others, references) = found
    assert answers == others
    assert [one[:4] for one in drafts] == [one[:4] for one in references]
    known = {*ids.tolist(), -1}
    assert all(known.issuperset(one.tokens) for one in drafts)
    if method == "eagle" and temperature:
        for one, other in zip(drafts, references):
            assert one.probs.shape[-1] == num_ids
            assert torch.allclose(one.probs, other.probs, atol=1e-12)
            assert (
                one.probs.sum() > 0 and set(one.probs.sum(0).nonzero().flatten().tolist()) <= known
            )


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_vanillas(method, model_dir, draft_dir, question_file, tmp_path):
    expected = answer("vanilla", model_dir, question_file, tmp_path / "v.jsonl")
    num_ids = load_target(model_dir, "float32", "cpu", "eager").vocab_size
    path = counts_file(tmp_path / "counts.safetensors", range(num_ids))
    flags = TINY_FLAGS[method]({"target": model_dir, "draft": draft_dir})
    flags += ["--draft-vocab", 30, "--token-counts-path", path]
    records = answer(method, model_dir, question_file, tmp_path / "a.jsonl", *flags)
    assert ids_of(records) == ids_of(expected)
    meta = read_meta(tmp_path / "a.jsonl")
    assert meta["method_facts"]["draft_vocab"] == 30
    assert len(meta["method_args"]["token_counts_path_sha256"]) == 64


def test_the_mini_heads_accept_nearly_as_much(tmp_path):
    """The most frequent three quarters of some answers' ids, beside all, and the rarest."""
    target = load_target(str(MINI / "target"), "float32", "cpu", "eager")
    prompter, stop, questions = mini_bench()
    prompts = [prompter.render(q["turns"][:1], []) for q in questions[::9]]
    whole = build("eagle2", str(MINI / "target"), target, [])
    answers, lengths = decode(target, whole, prompts, stop, 40)
    counts = torch.bincount(torch.tensor(sum(answers, [])), minlength=target.vocab_size)
    num = int((counts > 0).sum()) * 3 // 4
    means = [mean_of(lengths)]
    for name, given in (("often", counts), ("seldom", counts.max() + 1 - counts)):
        path = counts_file(tmp_path / f"{name}.safetensors", given * (counts > 0))
        flags = ["--draft-vocab", str(num), "--token-counts-path", path]
        drafter = build("eagle2", str(MINI / "target"), target, flags)
        same, lengths = decode(target, drafter, prompts, stop, 40)
        assert same == answers
        means.append(mean_of(lengths))
    assert means[0] >= means[1] > 0.85 * means[0] and means[2] < 0.7 * means[0], means


def mean_of(lengths):
    """Mean accepted tokens of turns."""
    steps = [length for turn in lengths for length in turn]
    return sum(steps) / len(steps)


# --- bad input ---


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--draft-vocab", 0], ["--draft-vocab", "0"]),
        (["--draft-vocab", 71], ["--draft-vocab 71", "counts of 70 ids"]),
        (["--draft-vocab", 2], ["--tree", "rank"]),
        (["--token-counts-path", "{counts}"], ["--token-counts-path", "--draft-vocab"]),
        (["--draft-vocab", 20, "--token-counts-path", "no.st"], ["no.st", "token_counts"]),
        (["--draft-vocab", 20, "--token-counts-path", "{broken}"], ["broken.st"]),
        (["--draft-vocab", 20, "--token-counts-path", "{real}"], ["real.st", "counts"]),
        (["--draft-vocab", 20, "--token-counts-path", "{long}"], ["long.st", "9999"]),
    ],
)
def test_bad_flags(capfd, paths, flags, words, model_dir, draft_dir):
    folder = paths["tmp"]
    counts = counts_file(folder / "counts.st", [1] * 20 + [0] * 50)
    (folder / "broken.st").write_bytes(b"no tensors")
    save_file({"counts": torch.ones(9)}, folder / "real.st")
    counts_file(folder / "long.st", [1] * 9999)
    names = {"counts": counts} | {
        name: folder / f"{name}.st" for name in ("broken", "real", "long")
    }
    flags = [flag.format(**names) if isinstance(flag, str) else flag for flag in flags]
    if "--token-counts-path" not in flags:
        flags += ["--token-counts-path", counts]
    own = TINY_FLAGS["eagle"]({"target": model_dir, "draft": draft_dir})
    line = refused(capfd, paths, *own, *flags, method="eagle")
    assert all(word in line for word in words), line


def test_the_file_beside_the_head(capfd, paths, model_dir, draft_dir, tmp_path):
    """It is read where no flag names another, and its absence names the command that makes it."""
    import shutil

    own = TINY_FLAGS["eagle2"]({"target": model_dir, "draft": draft_dir})
    head = tmp_path / "head"
    shutil.copytree(own[1], head)
    flags = ["--eagle-path", head, "--draft-vocab", 20]
    line = refused(capfd, paths, *flags, method="eagle2")
    assert FILE in line and "model.common.training.token_counts" in line
    counts_file(head / FILE, [1] * 60)
    assert len(read_counts(str(head / FILE), 97 * 97)) == 60
    records = answer("eagle2", model_dir, paths["questions"], tmp_path / "b.jsonl", *flags)
    drafted = read_meta(tmp_path / "b.jsonl")["method_facts"]
    assert drafted["draft_vocab"] == 20 and records


def test_heads_with_an_output_of_their_own(capfd, paths, model_dir, draft_dir):
    from tiny_methods import tiny_target

    model = tiny_target("eagle3", model_dir)
    own = TINY_FLAGS["eagle3"]({"target": model, "draft": draft_dir})
    counts = counts_file(paths["tmp"] / "counts.st", [1] * 60)
    flags = [*own, "--draft-vocab", 20, "--token-counts-path", counts]
    line = refused(capfd, {**paths, "model": model}, *flags, method="eagle3")
    assert "--draft-vocab" in line and "of its own" in line
    line = refused(capfd, paths, "--draft-vocab", 20, method="samd")
    assert "--draft-vocab" in line and "--auxiliary none" in line
