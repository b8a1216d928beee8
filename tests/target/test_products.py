"""Products in two forms: equal values, chosen by time, for few rows only."""

import copy

import pytest
import torch
from conftest import make_model
from harness_runs import answer, read_meta
from torch import nn

from model.common.target import products
from model.common.target.model import Target
from model.common.target.products import ROWS, Chosen, Product, choose_products, most_turned, turned

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1), (1, 5), (3, 4), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_both_forms_agree(shape, bias):
    """For any number of rows and dimensions, also of inputs that are no contiguous rows."""
    torch.manual_seed(0)
    linear = nn.Linear(7, 11, bias=bias, dtype=torch.float64)
    wide = torch.randn(*shape, 14, dtype=torch.float64)
    for rows in (wide[..., :7].contiguous(), wide[..., ::2]):
        found = turned(rows, linear.weight, linear.bias)
        assert found.shape == (*shape, 11)
        assert torch.allclose(found, linear(rows), atol=1e-12)


def test_gradients_agree():
    """A head that is trained behind them learns the same."""
    grads = []
    for most in (0, 8):
        torch.manual_seed(0)
        linear = nn.Linear(4, 3)
        rows = torch.randn(5, 4, requires_grad=True)
        linear.__class__, linear.turned_rows = Product, most
        linear(rows).square().sum().backward()
        grads.append((rows.grad, linear.weight.grad, linear.bias.grad))
    for one, other in zip(*grads):
        assert torch.allclose(one, other, atol=1e-5)


def test_only_few_rows_are_turned(monkeypatch):
    """Up to the limit, counted over all slots."""
    calls = []
    monkeypatch.setattr(products, "turned", lambda rows, *rest: calls.append(len(rows)))
    linear = nn.Linear(4, 3)
    linear.__class__, linear.turned_rows = Product, 4
    linear(torch.ones(2, 2, 4)), linear(torch.ones(5, 4)), linear(torch.ones(1, 5, 4))
    assert calls == [2]


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
        return [2.0] * len(ROWS), [1.0] * 3 + [4.0] * (len(ROWS) - 3)

    monkeypatch.setattr(products, "_times", times)
    target = Target(make_model("llama"))
    head = nn.Linear(8, 8)
    choose_products(head, CPU)
    assert head.turned_rows == target.model.lm_head.turned_rows == ROWS[2] == 4
    assert len(timed) == 1 and any(weight is target.model.lm_head.weight for weight in timed[0])


def test_they_are_really_timed(monkeypatch):
    """Both forms of every number of rows, in a moment."""
    monkeypatch.setattr(Chosen, "turned_rows", None)
    plain, turned_s = products._times([torch.randn(16, 8), torch.randn(8, 16)])
    assert len(plain) == len(turned_s) == len(ROWS)
    assert all(0 < time < 1 for time in plain + turned_s)


@pytest.mark.parametrize(
    "plain, turned_s, most",
    [
        ([2] * 7, [1] * 7, 64),
        ([1] * 7, [2] * 7, 0),
        ([2] * 7, [1, 1, 1, 3, 3, 3, 3], 4),
        ([1, 3, 3, 1, 1, 1, 1], [1.1, 1, 1, 2, 2, 2, 2], 4),  # slower for one row, it pays for more
        ([1.01] * 7, [1] * 7, 0),  # within what a clock sees
    ],
)
def test_the_limit_is_where_turning_stops_to_pay(plain, turned_s, most):
    """In units of the faster form, so that a step of one row counts like one of 64."""
    assert most_turned(plain, turned_s) == most


def test_a_run_says_how_its_products_were_computed(model_dir, question_file, tmp_path):
    """In its meta, beside the machine's bandwidth."""
    out = tmp_path / "a.jsonl"
    answer("vanilla", model_dir, question_file, out, "--limit-per-category", "1")
    assert read_meta(out)["environment"]["turned_rows"] == Chosen.turned_rows
