"""Products of a few rows with a weight on a CPU, as x Wᵀ or turned, as (W xᵀ)ᵀ.

A step reads few rows, so that its time is that of reading the weights. BLAS libraries have a code
path for each form, and for few rows one of them may run at a fraction of the memory's speed: MKL on
an AVX2 machine took 53 ms for two rows of a 135 M model in the first form and 19 ms in the second,
44 and 19 ms for one row, which goes turned as two. So a model's own products are timed in both
forms when it is loaded, and `turned_rows` says up to how many rows they are turned. Both forms
round differently (3e-5 of a product's size in float32), as products of one row and of several do.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

ROWS = (1, 2, 4, 8, 16, 32, 64)  # that are timed
SAMPLE_BYTES = 256 << 20  # of weights: beyond a processor's caches, where a model is
LONGEST_S = 2.0  # of timing
REPETITIONS = 5


class Product(nn.Linear):
    """A Linear that is turned for inputs of up to `turned_rows` rows.

    An existing Linear becomes one by its class alone, so that tied weights stay tied.
    """

    turned_rows = 0

    def forward(self, input: Tensor) -> Tensor:
        num_rows = input.numel() // self.in_features
        if num_rows > self.turned_rows or num_rows == 0:
            return super().forward(input)
        return turned(input, self.weight, self.bias)


def turned(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [.., in] times weight [out, in], transposed, plus bias: [.., out]."""
    flat = rows.reshape(-1, rows.shape[-1])
    num_rows = len(flat)
    if num_rows == 1:  # two columns take less time than one
        flat = torch.cat([flat, flat])
    columns = flat.T
    out = weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return out[:, :num_rows].T.reshape(*rows.shape[:-1], len(weight))


class Chosen:
    """What this process has found; the first model that is loaded, the target, decides for all."""

    turned_rows: int | None = None


def choose_products(module: nn.Module, device: torch.device) -> None:
    """Make the Linears of a module Products, turned for as many rows as that is the faster form.

    device: where they are computed. On a GPU, and in another precision than float32, they stay as
    they are.
    """
    linears = [part for part in module.modules() if device.type == "cpu" and _is_plain(part)]
    if linears and Chosen.turned_rows is None:
        with torch.inference_mode():
            Chosen.turned_rows = most_turned(*_times(_sample(linears)))
    for linear in linears:
        linear.__class__ = Product
        linear.turned_rows = Chosen.turned_rows


def _is_plain(part: nn.Module) -> bool:
    if type(part) is not nn.Linear:
        return False
    weight = part.weight  # of a streamed layer there is none yet
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0


def _sample(linears: list) -> list[Tensor]:
    """Weights as far apart as possible, until there are enough of them."""
    chosen, step = [], max(sum(part.weight.nbytes for part in linears) // SAMPLE_BYTES, 1)
    for part in linears[::step] + linears[-1:]:
        if not any(part.weight is other for other in chosen):
            chosen.append(part.weight)
    return chosen


def _times(weights: list[Tensor]) -> tuple[list[float], list[float]]:
    """Seconds of all products with 1, 2, 4, ... rows (the best of some passes): plain, turned."""
    forms = nn.functional.linear, turned
    best = {(form, num): float("inf") for num in ROWS for form in forms}
    begin, done = time.perf_counter(), 0
    while done < 2 or (done < REPETITIONS and time.perf_counter() - begin < LONGEST_S):
        for form, num in best:
            rows = {weight.shape[1]: weight.new_ones(num, weight.shape[1]) for weight in weights}
            since = time.perf_counter()
            for weight in weights:
                form(rows[weight.shape[1]], weight)
            best[form, num] = min(best[form, num], time.perf_counter() - since)
        done += 1
    return tuple([best[form, num] for num in ROWS] for form in forms)


def most_turned(plain: list[float], turned: list[float]) -> int:
    """Up to how many rows products should be turned, of the times of both forms for each of ROWS.

    The least sum of times, each in units of the faster form's; 0 where it gains less than 3 %.
    """
    unit = [min(pair) for pair in zip(plain, turned)]
    costs = {0: sum(time / least for time, least in zip(plain, unit))}
    for i, num in enumerate(ROWS):
        costs[num] = sum(
            time / least for time, least in zip(turned[: i + 1] + plain[i + 1 :], unit)
        )
    best = min(costs, key=costs.get)
    return best if costs[best] < 0.97 * costs[0] else 0
