"""What a forward costs by the number of rows: products in one form, and in the faster of two.

Two copies of the target, whose products (model/common/target/products.py) are all plain in one and
as the loader chose in the other, take turns; a cell is the median over rounds of medians. The bound
is a step's bytes of weights over the bandwidth that the machine reads a large buffer with.

Run:  python tests/bench/bench_price.py --model-path data/models/smollm2 --runtime compile
"""

import json
import statistics
import sys

import bench_parts as parts

HEAD = "rows    plain ms   chosen ms   plain/chosen   x one row   of bound"
PREFIX = 200  # tokens behind which the rows are read


def load(args, turned_rows):
    """A target whose products are turned for a range of rows; None: as the loader chooses."""
    from model.common.target.loading import load_target
    from model.common.target.products import Chosen

    Chosen.turned_rows = turned_rows
    return load_target(args.model_path, args.dtype, "cpu", args.runtime)


def main(argv=None):
    """Print the table."""
    import torch

    from model.common.args import at_least
    from model.common.errors import ends_in_one_line
    from model.common.fitting.price import price_of_rows
    from model.common.records.bandwidth import measure
    from model.common.target.products import NEVER, Chosen, rows_text

    parser = parts.make_parser(
        __doc__, model_path=parts.TARGET, dtype="float32", runtime="eager", num_threads=None,
        rounds=3, output=None,
    )  # fmt: skip
    parser.add_argument("--most-rows", type=at_least(1), default=64, help="rows of the widest")
    args = parser.parse_args(argv)
    with ends_in_one_line(parser.prog):
        if args.num_threads:
            torch.set_num_threads(args.num_threads)
        targets = {"chosen": load(args, None)}
        turned_rows = rows_text(Chosen.turned_rows)
        targets["plain"] = load(args, NEVER)
        measured = measure(targets["chosen"], streamed=False)
        prompt = [token % targets["plain"].vocab_size for token in range(7, 7 + PREFIX)]
        times = {name: [] for name in targets}
        for _ in range(args.rounds + 1):
            for name, target in targets.items():
                times[name].append(price_of_rows(target, prompt, 1, args.most_rows, float("inf")))
    num_bytes = sum(measured["step_reads"].get("weight_bytes", {}).values())
    read = (measured["bandwidth"] or {}).get("read")
    bound = 1e-6 * num_bytes / read if read and num_bytes else None
    rows = table(times, bound)
    print(f"{args.model_path}, {args.runtime}, {args.dtype}, {torch.get_num_threads()} threads")
    if bound:
        print(f"{num_bytes / 1e9:.2f} GB a step at {read:.1f} GB/s: {bound:.1f} ms")
    print(f"turned: products of {turned_rows} rows\n{HEAD}")
    for row in rows:
        share = "-" if row["of_bound"] is None else f"{row['of_bound']:.2f}"
        print(
            f"{row['rows']:4} {row['plain_ms']:11.1f} {row['chosen_ms']:11.1f} "
            f"{row['plain_ms'] / row['chosen_ms']:14.2f} {row['of_one_row']:11.2f} {share:>10}"
        )
    if args.output:
        facts = {"rows": rows, "turned_rows": turned_rows, "bound_ms": bound, **measured}
        with open(args.output, "w", encoding="utf-8") as out:
            json.dump(facts, out, indent=1)


def table(times: dict, bound: float | None) -> list[dict]:
    """A row a number of rows; the first round is left out where there are others."""
    found = []
    for num_rows in times["plain"][0]:
        plain, chosen = (
            1e3 * statistics.median(price[num_rows] for price in times[name][1:] or times[name])
            for name in ("plain", "chosen")
        )
        one = found[0]["chosen_ms"] if found else chosen
        row = {"rows": num_rows, "plain_ms": plain, "chosen_ms": chosen}
        row |= {"of_one_row": chosen / one, "of_bound": bound and bound / chosen}
        found.append(row)
    return found


if __name__ == "__main__":
    sys.exit(main())
