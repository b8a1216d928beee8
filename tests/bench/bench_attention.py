"""One layer's attention in a verification step: SDPA with an additive mask against other kernels.

Rows of a random draft tree read C committed columns and their ancestors, batch 1. Contenders take
turns in passes over as many layers' keys and values as leave the caches (on CUDA a graph of them).
Outputs are held against float64 before: a wrong one is not timed, and the exit status is 1.

    sdpa-mask      model/common/target/attention.py: a group's heads folded into rows, additive mask
    sdpa-repeated  keys and values repeated for every head of a group, then the same
    flex           compiled flex_attention with a block mask
    mask ms        to build it, once a step; ms: of a layer; bound ms: to read K and V once

Run:  python tests/bench/bench_attention.py --num-threads 1 (one core, minutes; GPU: --device cuda)
"""

import functools
import math
import statistics
import sys

import bench_parts as parts

CONTENDERS = ("sdpa-mask", "sdpa-repeated", "flex")
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # outputs are of about 1
HEAD = "column rows contender     K+V MB bound ms       ms of bound speedup GFLOP/s mask ms   error"


class Case:
    """Queries of a tree's rows, keys and values of some layers, and the first layer's truth."""

    def __init__(self, args, columns: int, rows: int, device, buffer_bytes: int):
        import torch

        from model.common.contract.trees import ancestors
        from model.common.loop.clock import now
        from model.common.target.runtime import Runtime

        self.columns, self.rows, self.end, self.device = columns, rows, columns + rows, device
        self.now, self.cuda = functools.partial(now, device), torch.cuda
        self.dtype, dim, self.scale = getattr(torch, args.dtype), args.head_dim, args.head_dim**-0.5
        self.groups, self.width = args.heads // args.kv_heads, Runtime(device).width(self.end)
        self.kv_bytes = 2 * args.kv_heads * self.end * dim * self.dtype.itemsize
        self.flop = 4 * args.heads * rows * self.end * dim
        torch.manual_seed(0)
        parents = [int(torch.randint(-1, node, ())) for node in range(rows - 1)]
        self.known = ancestors(torch.tensor(parents, dtype=torch.long)).to(device)  # [r, r]
        self.query = torch.randn(1, args.heads, rows, dim, dtype=self.dtype, device=device)
        self.query[..., 0] = 1 / self.scale
        self.folded = self.query.reshape(1, args.kv_heads, -1, dim)  # [1, Hkv, G r, D]
        num_layers = min(-(-buffer_bytes // self.kv_bytes), 64)
        storage = self.query.new_empty(num_layers, 2, 1, args.kv_heads, self.width, dim).normal_()
        storage[:, 0, ..., 0] = 0  # but where one column more or less has to show at any length:
        storage[:, 0, :, :, [0, *range(columns - 1, self.width)], 0] = math.log(columns)
        self.layers = [layer.unbind(0) for layer in storage]
        keys, values = (part[:, :, : self.end].double() for part in self.layers[0])
        scores = self.folded.double() @ keys.mT * self.scale  # [1, Hkv, G r, C + r]
        scores[..., columns:].masked_fill_(~self.known.repeat(self.groups, 1), -math.inf)
        self.unfolded = lambda out: out.reshape(self.query.shape).transpose(1, 2).contiguous()
        self.truth = self.unfolded(scores.softmax(-1) @ values)


def kernels(case) -> dict:
    """{contender: (mask maker, attention of (mask, keys, values))}."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from transformers.integrations.sdpa_attention import repeat_kv

    from model.common.target import attention

    rows, columns, known, scale = case.rows, case.columns, case.known, case.scale
    torch.compiler.reset()  # or cases would add up to the limit of recompilations
    compiled = torch.compile(flex_attention, dynamic=False)
    length = torch.tensor([columns], device=case.device)
    own = length.unsqueeze(1) + torch.arange(rows, device=case.device)

    def additive():
        allowed = attention.rows_mask(length, own, own, known[None], case.width)
        return attention.additive(allowed, case.dtype)

    def grouped(mask, keys, values, copies=1):
        keys, values = repeat_kv(keys, copies), repeat_kv(values, copies)
        return attention.grouped_attention(case.query, keys, values, mask, scale)

    def seen(batch, head, row, column):
        node = column - columns
        return (node < 0) | ((node < rows) & known[row, node.clamp(0, rows - 1)])

    def flex(mask, *kv):
        return case.unfolded(compiled(case.query, *kv, None, mask, scale, enable_gqa=True))

    blocks = functools.partial(create_block_mask, seen, None, None, rows, case.width, case.device)
    repeated = functools.partial(grouped, copies=case.groups)
    pairs = ((additive, grouped), (additive, repeated), (blocks, flex))
    return dict(zip(CONTENDERS, pairs))


def prepare(case, name: str, build, attend, tolerance: float):
    """(row of the table, a pass over the layers, or None where there is nothing to time)."""
    row = {"columns": case.columns, "rows": case.rows, "contender": name, "status": "ok"}
    try:
        build()  # warms up
        begin = case.now()
        mask = build()
        row["mask_ms"] = 1e3 * (case.now() - begin)
        row["error"] = float((attend(mask, *case.layers[0]) - case.truth).abs().max())
        if not row["error"] <= tolerance:
            return row | {"status": f"wrong by {row['error']:.1e}"}, None
        if case.device.type == "cpu":  # any() lets go of each output before the next
            return row, lambda: any(attend(mask, *layer) is None for layer in case.layers)
        with case.cuda.graph(graph := case.cuda.CUDAGraph()):
            for layer in case.layers:
                attend(mask, *layer)
        return row, graph.replay
    except Exception as error:  # whatever a compiler or a kernel refuses with
        return row | {"status": f"not run: {error!r}"[:160]}, None


def measure(case, args, read_gb_s: float) -> list[dict]:
    """Time the contenders in turns; print and return their rows."""
    made, tolerance = kernels(case), TOLERANCE[args.dtype]
    prepared = [prepare(case, name, *made[name], tolerance) for name in args.contenders]
    for number in range(args.rounds + 1):  # the first one warms up
        for row, run in prepared[:: 1 if number % 2 else -1]:
            if run:
                begin = case.now()
                run()
                ms = 1e3 * (case.now() - begin) / len(case.layers)
                row.setdefault("ms_rounds", []).append(ms)
    bound = case.kv_bytes / read_gb_s / 1e6
    for row, run in prepared:
        line = f"{case.columns:6}{case.rows:5} {row['contender']:13}"
        if run:
            ms = row["ms"] = statistics.median(row["ms_rounds"][1:])
            line += f"{case.kv_bytes / 1e6:7.1f}{bound:9.3f}{ms:9.3f}{bound / ms:9.1%}"
            line += f"{prepared[0][0].get('ms', math.nan) / ms:8.2f}{case.flop / ms / 1e6:8.1f}"
            line += "{mask_ms:8.3f}{error:8.1e}".format(**row)
        print(line if run else f"{line} {row['status']}", flush=True)
    return [row for row, _ in prepared]


def parse_args(argv=None):
    """Flags."""
    from model.common.args import at_least

    shared = {"num_threads": None, "rounds": 5, "dtype": "float32", "device": "auto"}
    parser = parts.make_parser(__doc__, **shared, output=None)
    add = functools.partial(parser.add_argument, type=at_least(1))
    add("--columns", nargs="+", default=[512, 2048, 8192, 32768], help="committed ones")
    add("--rows", nargs="+", default=[1, 8, 61], help="of the tree, its root included")
    add("--heads", default=32, help="of queries")
    add("--kv-heads", default=8, help="of keys and values")
    add("--head-dim", default=128, help="of all of them")
    add("--contenders", nargs="+", type=str, choices=CONTENDERS, default=CONTENDERS)
    args = parser.parse_args(argv)
    if args.heads % args.kv_heads:
        parser.error(f"--heads {args.heads} is no multiple of --kv-heads {args.kv_heads}")
    return args


def main(argv=None) -> None:
    """Print the table; exit 1 where an output was wrong."""
    args = parse_args(argv)
    import torch

    from model.common.errors import ends_in_one_line
    from model.common.records.bandwidth import bandwidth
    from model.common.target.loading import torch_device

    torch.set_num_threads(args.num_threads or torch.get_num_threads())
    with ends_in_one_line("bench_attention.py"), torch.inference_mode():
        device, table = torch_device(args.device), []
        probe = bandwidth(device)
        print(f"read bandwidth {probe['read']} GB/s\n{HEAD}")
        for shape in ((columns, rows) for columns in args.columns for rows in args.rows):
            table += measure(Case(args, *shape, device, probe["buffer_bytes"]), args, probe["read"])
    parts.write_json("bench_attention", args, bandwidth=probe, table=table)
    sys.exit(any(row["status"].startswith("wrong") for row in table))


if __name__ == "__main__":
    main()
