"""Products of a few rows with a weight on a CPU, as x Wᵀ or turned, as (W xᵀ)ᵀ.

A step reads few rows, so that its time is that of reading the weights. BLAS libraries have a code
path for each form, and for few rows one of them may run at a fraction of the memory's speed: MKL on
an AVX2 machine took 53 ms for two rows of a 135 M model in the first form and 19 ms in the second,
44 and 19 ms for one row, which goes turned as two. So a model's own products are timed in both
forms when it is loaded, one row (all that a baseline reads) by itself, and a range of row counts
says where they are turned. Within it, rows that fill no block of the library's may cost more than
the block: MKL's 11 rows of that model took 74 ms, 16 rows 59. From a count on, which is timed too,
turned rows are padded to a multiple of BLOCK. The forms round differently (3e-5 of a product's size
in float32), as products of one row and of several do.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

ROWS = (1, 2, 4, 8, 12, 16, 32, 64)  # that are timed
BLOCK, BETWEEN = 8, 12  # rows of a block of the libraries', and some between one and two of them
SAMPLE_BYTES = 256 << 20  # of weights: beyond a processor's caches, where a model is
LONGEST_S = 2.0  # of timing
REPETITIONS = 5
LEAST_GAIN = 0.97  # of the plain form's time: what turns products takes less


class Turned(NamedTuple):
    """Row counts, from fewest to most, of which products are turned.

    padded_from: the count from which on they are padded to a multiple of BLOCK; 0 = never.
    """

    fewest: int
    most: int
    padded_from: int = 0


NEVER = Turned(1, 0)


class Product(nn.Linear):
    """A Linear that is turned for inputs of some numbers of rows.

    An existing Linear becomes one by its class alone, so that tied weights stay tied.
    """

    turned_rows = NEVER

    def forward(self, input: Tensor) -> Tensor:
        fewest, most, padded_from = self.turned_rows
        num_rows = input.numel() // self.in_features
        if fewest <= num_rows <= most:
            padded = padded_from and num_rows >= padded_from
            return turned(input, self.weight, self.bias, padded)
        return super().forward(input)


def turned(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, padded: bool = False
) -> Tensor:
    """rows [.., in] times weight [out, in], transposed, plus bias: [.., out].

    padded: to a multiple of BLOCK rows, whose products are dropped.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    num_rows = len(flat)
    if num_rows == 1:  # two columns take less time than one
        flat = torch.cat([flat, flat])
    elif padded:
        flat = pad(flat, (0, 0, 0, -num_rows % BLOCK))
    columns = flat.T
    out = weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    out = out[:, :num_rows].T.contiguous()  # models view what a Linear gives them
    return out.view(*rows.shape[:-1], len(weight))


class Chosen:
    """What this process has found; the first model that is loaded, the target, decides for all."""

    turned_rows: Turned | None = None


@contextmanager
def undecided():
    """Models that are loaded inside decide nothing: they decode no step."""
    before = Chosen.turned_rows
    Chosen.turned_rows = before or NEVER
    try:
        yield
    finally:
        Chosen.turned_rows = before


def rows_text(turned_rows: Turned | None) -> str | None:
    """How it is recorded, and read by read_rows().

    >>> rows_text(Turned(1, 64)), rows_text(Turned(1, 32, 11)), rows_text(NEVER), rows_text(None)
    ('1-64', '1-32/11', 'none', None)
    """
    if turned_rows is None:
        return None
    fewest, most, padded_from = turned_rows
    if fewest > most:
        return "none"
    return f"{fewest}-{most}" + (f"/{padded_from}" if padded_from else "")


def read_rows(text: str) -> Turned:
    """What a text says. Raises ValueError.

    >>> read_rows("2-8"), read_rows("1-32/11")
    (Turned(fewest=2, most=8, padded_from=0), Turned(fewest=1, most=32, padded_from=11))
    """
    if text == "none":
        return NEVER
    counts, slash, padded_from = text.partition("/")
    fewest, most = (int(part) for part in counts.split("-"))
    found = Turned(fewest, most, int(padded_from) if slash else 0)
    if not 1 <= fewest <= most or (slash and not 1 <= found.padded_from <= most):
        raise ValueError(text)
    return found


def choose_products(module: nn.Module, device: torch.device) -> None:
    """Make the Linears of a module Products, turned for as many rows as that is the faster form.

    device: where they are computed. On a GPU, and in another precision than float32, they stay as
    they are.
    """
    linears = [part for part in module.modules() if device.type == "cpu" and _is_plain(part)]
    if linears and Chosen.turned_rows is None:
        with torch.inference_mode():
            Chosen.turned_rows = choose_turned(*_times(_sample(linears)))
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


def choose_turned(plain: list[float], turned: list[float]) -> Turned:
    """What should be turned, of both forms' times for each of ROWS.

    One row is decided by its own times, since it is all that a baseline reads. Of more rows: two up
    to the count with the least sum of times, each in units of the faster form's.
    """
    one = turned[0] < LEAST_GAIN * plain[0]
    padded_from, turned = padding(turned)
    more = list(zip(ROWS, plain, turned))[1:]
    costs = {
        most: sum((b if num <= most else a) / min(a, b) for num, a, b in more)
        for most in (1, *ROWS[1:])
    }
    most = min(costs, key=costs.get)
    if costs[most] >= LEAST_GAIN * costs[1]:
        most = 1
    if not one and most == 1:
        return NEVER
    return Turned(1 if one else 2, most, padded_from if padded_from < most else 0)


def padding(times: list[float]) -> tuple[int, list[float]]:
    """(the count from which on rows are padded, 0 = never; times of ROWS with that).

    Between BLOCK and twice that many rows times are taken to lie on lines through the measured
    ones: padded is what would take longer than the full block.
    """
    below, between, full = map(ROWS.index, (BLOCK, BETWEEN, 2 * BLOCK))
    if LEAST_GAIN * times[between] <= times[full]:
        return 0, times
    rise = (times[between] - times[below]) / (BETWEEN - BLOCK)
    counts = range(BLOCK + 1, BETWEEN + 1)
    first = next(n for n in counts if times[below] + rise * (n - BLOCK) > times[full])
    return first, [*times[:between], times[full], *times[full:]]
