"""Products of a few rows with a weight on a CPU, as x Wᵀ or turned, as (W xᵀ)ᵀ.

A step reads few rows, so that its time is that of reading the weights. BLAS libraries have a code
path for each form, and for few rows one of them may run at a fraction of the memory's speed: MKL on
an AVX2 machine took 53 ms for two rows of a 135 M model in the first form and 19 ms in the second,
44 and 19 ms for one row, which goes turned as two. So a model's own products are timed in both
forms when it is loaded, one row (all that a baseline reads) by itself, and a range of row counts
says where they are turned. Both forms round differently (3e-5 of a product's size in float32), as
products of one row and of several do.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

ROWS = (1, 2, 4, 8, 16, 32, 64)  # that are timed
SAMPLE_BYTES = 256 << 20  # of weights: beyond a processor's caches, where a model is
LONGEST_S = 2.0  # of timing
REPETITIONS = 5
LEAST_GAIN = 0.97  # of the plain form's time: what turns products takes less
NEVER = (1, 0)  # a range of row counts that is empty


class Product(nn.Linear):
    """A Linear that is turned for inputs whose number of rows is in a range (fewest, most).

    An existing Linear becomes one by its class alone, so that tied weights stay tied.
    """

    turned_rows = NEVER

    def forward(self, input: Tensor) -> Tensor:
        fewest, most = self.turned_rows
        if fewest <= input.numel() // self.in_features <= most:
            return turned(input, self.weight, self.bias)
        return super().forward(input)


def turned(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [.., in] times weight [out, in], transposed, plus bias: [.., out]."""
    flat = rows.reshape(-1, rows.shape[-1])
    num_rows = len(flat)
    if num_rows == 1:  # two columns take less time than one
        flat = torch.cat([flat, flat])
    columns = flat.T
    out = weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    out = out[:, :num_rows].T.contiguous()  # models view what a Linear gives them
    return out.view(*rows.shape[:-1], len(weight))


class Chosen:
    """What this process has found; the first model that is loaded, the target, decides for all."""

    turned_rows: tuple[int, int] | None = None


def rows_text(turned_rows: tuple[int, int] | None) -> str | None:
    """How a range is recorded, and read by read_rows().

    >>> rows_text((1, 64)), rows_text(NEVER), rows_text(None)
    ('1-64', 'none', None)
    """
    if turned_rows is None:
        return None
    return "none" if turned_rows[0] > turned_rows[1] else f"{turned_rows[0]}-{turned_rows[1]}"


def read_rows(text: str) -> tuple[int, int]:
    """The range of a text. Raises ValueError.

    >>> read_rows("2-8"), read_rows("none")
    ((2, 8), (1, 0))
    """
    if text == "none":
        return NEVER
    fewest, most = (int(part) for part in text.split("-"))
    if not 1 <= fewest <= most:
        raise ValueError(text)
    return fewest, most


def choose_products(module: nn.Module, device: torch.device) -> None:
    """Make the Linears of a module Products, turned for as many rows as that is the faster form.

    device: where they are computed. On a GPU, and in another precision than float32, they stay as
    they are.
    """
    linears = [part for part in module.modules() if device.type == "cpu" and _is_plain(part)]
    if linears and Chosen.turned_rows is None:
        with torch.inference_mode():
            Chosen.turned_rows = range_turned(*_times(_sample(linears)))
    for linear in linears:
        linear.__class__ = Product
        linear.turned_rows = Chosen.turned_rows


def form_of(module: nn.Module) -> str | None:
    """rows_text() of a module's Products, None where it has none."""
    products = (part for part in module.modules() if isinstance(part, Product))
    return next((rows_text(part.turned_rows) for part in products), None)


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


def range_turned(plain: list[float], turned: list[float]) -> tuple[int, int]:
    """The row counts (fewest, most) that should be turned, of both forms' times for each of ROWS.

    One row is decided by its own times, since it is all that a baseline reads. Of more rows: two up
    to the count with the least sum of times, each in units of the faster form's.
    """
    one = turned[0] < LEAST_GAIN * plain[0]
    more = list(zip(ROWS, plain, turned))[1:]
    costs = {
        most: sum((b if num <= most else a) / min(a, b) for num, a, b in more)
        for most in (1, *ROWS[1:])
    }
    most = min(costs, key=costs.get)
    if costs[most] >= LEAST_GAIN * costs[1]:
        most = 1
    return (1 if one else 2, most) if one or most > 1 else NEVER
