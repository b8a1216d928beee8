"""Products in two forms: equal values, chosen by time, for few rows only."""

import copy

import pytest
import torch
from conftest import make_model
from harness_runs import answer, read, read_meta
from harness_runs import run as run_script
from torch import nn

from model.common.target import products
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.common.target.products import (
    LEAST_GAIN,
    NEVER,
    ROWS,
    Chosen,
    Product,
    Turned,
    choose_products,
    choose_turned,
    form_of,
    rows_text,
    turned,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1), (1, 5), (3, 4), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_both_forms_agree(shape, bias, padded):
    """For any number of rows and dimensions, also of inputs that are no contiguous rows."""
    torch.manual_seed(0)
    linear = nn.Linear(7, 11, bias=bias, dtype=torch.float64)
    wide = torch.randn(*shape, 14, dtype=torch.float64)
    for rows in (wide[..., :7].contiguous(), wide[..., ::2]):
        found = turned(rows, linear.weight, linear.bias, padded)
        assert found.shape == (*shape, 11)
        assert torch.allclose(found, linear(rows), atol=1e-12)
        assert found.is_contiguous()


def test_gradients_agree():
    """A head that is trained behind them learns the same."""
    grads = []
    for form in (products.NEVER, Turned(1, 8), Turned(1, 8, 3)):
        torch.manual_seed(0)
        linear = nn.Linear(4, 3)
        rows = torch.randn(5, 4, requires_grad=True)
        linear.__class__, linear.turned_rows = Product, form
        linear(rows).square().sum().backward()
        grads.append((rows.grad, linear.weight.grad, linear.bias.grad))
    for one, *others in zip(*grads):
        assert all(torch.allclose(one, other, atol=1e-5) for other in others)


def test_only_few_rows_are_turned(monkeypatch):
    """Those in the range, counted over all slots; from a count on they are padded."""
    calls = []

    def note(rows, weight, bias, padded):
        calls.append((rows.shape[:-1].numel(), bool(padded)))

    monkeypatch.setattr(products, "turned", note)
    linear = nn.Linear(4, 3)
    linear.__class__, linear.turned_rows = Product, Turned(2, 4, 3)
    for shape in ((2, 1), (3,), (5,), (1, 5), (2, 2), (1, 1), (0,)):
        linear(torch.ones(*shape, 4))
    assert calls == [(2, False), (3, True), (4, True)]


@pytest.mark.parametrize("num_rows, columns", [(1, 2), (7, 8), (8, 8), (11, 16), (17, 24)])
def test_padded_rows_fill_blocks(monkeypatch, num_rows, columns):
    """And their products are dropped."""
    seen, matmul = [], torch.Tensor.__matmul__

    def watched(self, other):
        seen.append(other.shape[1])
        return matmul(self, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    weight, rows = torch.randn(5, 4), torch.randn(num_rows, 4)
    assert torch.allclose(turned(rows, weight, None, True), torch.mm(rows, weight.T), atol=1e-5)
    assert seen == [columns]


def test_a_model_of_products_is_the_same_model():
    """Tied weights stay tied, names and tensors stay, other modules and precisions are left."""
    model = make_model("llama", tie_word_embeddings=True)
    names = list(model.state_dict())
    choose_products(model, CPU)
    assert type(model.lm_head) is Product and model.lm_head.turned_rows == Chosen.turned_rows
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert list(model.state_dict()) == names
    assert type(copy.deepcopy(model).lm_head) is Product
    for other in (nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float16)):
        choose_products(other, CPU)
        assert type(other) is nn.Linear
    elsewhere = nn.Linear(4, 4)
    choose_products(elsewhere, torch.device("cuda"))
    assert type(elsewhere) is nn.Linear


def test_the_first_model_decides_for_all(monkeypatch):
    """Target, draft models and heads of a process are computed alike; timed once."""
    timed = []
    monkeypatch.setattr(Chosen, "turned_rows", None)

    def times(weights):
        timed.append(weights)
        return [2.0] * len(ROWS), [1.0] * 3 + [4.0] * (len(ROWS) - 3)  # turned pays up to 4 rows

    monkeypatch.setattr(products, "_times", times)
    target = Target(make_model("llama"))
    head = nn.Linear(8, 8)
    choose_products(head, CPU)
    assert head.turned_rows == target.model.lm_head.turned_rows == Turned(1, 4)
    assert len(timed) == 1 and any(weight is target.model.lm_head.weight for weight in timed[0])


def test_products_are_chosen_on_the_twins_weights(model_dir, monkeypatch):
    """Not on its origin's, which is loaded before and decodes nothing."""
    timed = []

    def times(weights):
        timed.append([tuple(weight.shape) for weight in weights])
        return [2.0] * len(ROWS), [1.0] * len(ROWS)

    monkeypatch.setattr(Chosen, "turned_rows", None)
    monkeypatch.setattr(products, "_times", times)
    twin = load_target(model_dir, "float32", "cpu", "eager", scale_to="256x4x200x300")
    (shapes,) = timed
    assert (300, 256) in shapes and all(256 in shape for shape in shapes)
    assert form_of(twin.model) == "1-64" and Chosen.turned_rows == Turned(1, 64)


def test_they_are_really_timed(monkeypatch):
    """Both forms of every number of rows, in a moment."""
    monkeypatch.setattr(Chosen, "turned_rows", None)
    plain, turned_s = products._times([torch.randn(16, 8), torch.randn(8, 16)])
    assert len(plain) == len(turned_s) == len(ROWS)
    assert all(0 < time < 1 for time in plain + turned_s)


@pytest.mark.parametrize(
    "plain, turned_s, chosen",
    [
        ([2] * 8, [1] * 8, Turned(1, 64)),
        ([1] * 8, [2] * 8, NEVER),
        ([2] * 8, [1, 1, 1, 3, 3, 3, 3, 3], Turned(1, 4)),
        ([1] * 8, [3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1], Turned(2, 32)),
        (
            [36, 127, 166, 166, 167, 168, 255, 373],
            [90, 90, 92, 95, 120, 150, 240, 373],
            Turned(2, 32),
        ),
        ([2] * 8, [1] + [3] * 7, Turned(1, 1)),
        ([1.01] * 8, [1] * 8, NEVER),  # within what a clock sees
        # this machine's 135 M model: 9 rows take less than 16, as 11 do not on the line to 12
        (
            [46, 83, 64, 56, 62, 69, 90, 136],
            [47, 19, 30, 42, 74, 59, 80, 126],
            Turned(2, 64, 11),
        ),
        ([60] * 8, [50, 50, 50, 50, 70, 55, 61, 80], Turned(1, 16, 10)),
    ],
)
def test_turned_where_it_pays_and_never_at_the_cost_of_one_row(plain, turned_s, chosen):
    """One row is the baseline's whole step: what more rows gain does not speak for it."""
    assert choose_turned(plain, turned_s) == chosen
    fewest, most, _ = chosen
    one_row = turned_s[0] if fewest <= 1 <= most else plain[0]
    assert one_row <= min(plain[0], turned_s[0]) / LEAST_GAIN


@pytest.mark.parametrize("text", ["1", "0-4", "5-4", "all", "-", "1-2-3", "1-8/9", "1-8/"])
def test_broken_ranges_are_bad_input(text, capsys):
    """In one line that names the flag."""
    assert run_script("vanilla", "--model-path", "x", "--turned-rows", text) == 2
    assert "--turned-rows" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_products(model_dir, question_file, tmp_path, capsys):
    """Also where this process would choose others; another form is refused by name."""
    out = tmp_path / "a.jsonl"
    first = ["--limit-per-category", "1", "--question-end", "2"]
    answer("vanilla", model_dir, question_file, out, *first, "--turned-rows", "2-8/4")
    Chosen.turned_rows = NEVER
    answer("vanilla", model_dir, question_file, out)
    assert read_meta(out)["environment"]["turned_rows"] == "2-8/4" and len(read(out)) == 6
    assert Chosen.turned_rows == Turned(2, 8, 4)
    answer("vanilla", model_dir, question_file, out)  # nothing is left: the meta is written anew
    assert read_meta(out)["environment"]["turned_rows"] == "2-8/4"
    capsys.readouterr()
    answer("vanilla", model_dir, question_file, out, "--turned-rows", "none", code=2)
    assert "--turned-rows 2-8/4" in capsys.readouterr().err


def test_a_run_says_how_its_products_were_computed(model_dir, question_file, tmp_path):
    """In its meta, beside the machine's bandwidth."""
    out = tmp_path / "a.jsonl"
    answer("vanilla", model_dir, question_file, out, "--limit-per-category", "1")
    assert read_meta(out)["environment"]["turned_rows"] == rows_text(Chosen.turned_rows)
