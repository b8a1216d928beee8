"""The page's figures for papers: PNG and SVG of a column's width, text as text, by matplotlib.

The numbers are those of speed.py. Files of one target and one setting are drawn, against the
baseline of --base-path, or else the first vanilla file; a figure that the files have no data for
is not written. The same files give the same pictures, byte for byte.

Run:  python evaluation/plot.py ANSWERS/*.jsonl --base-path ANSWERS/vanilla.jsonl --output FIGURES
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.meta import AnswerError  # noqa: E402
from evaluation.cli import Parser, run  # noqa: E402
from evaluation.pictures import figures  # noqa: E402
from evaluation.report import add_sources, check, make_document  # noqa: E402

FORMATS = ("png", "svg", "pdf")
DATELESS = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    add_sources(parser)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="made where it is not")
    parser.add_argument(
        "--figures", nargs="+", choices=figures.FIGURES, default=[*figures.FIGURES], metavar="NAME"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["png", "svg"])
    parser.add_argument("--width", type=float, default=3.3, help="inches (a column: 3.3)")
    parser.add_argument("--dpi", type=int, default=300, help="of PNG")
    parser.add_argument("--category", default="overall", help="questions of one task alone")
    args = parser.parse_args(argv)
    check(parser, args)
    if not 1 <= args.width <= 30 or not 50 <= args.dpi <= 1200:
        parser.error("--width is 1 to 30 inches, --dpi 50 to 1200")
    return args


def one_view(document, category):
    """(group, baseline) of a document that has no choice, refused where it has one."""
    groups = document["groups"]
    if len(groups) > 1:
        differing = [
            name
            for name in groups[0]["settings"]
            if len({str(group["settings"].get(name)) for group in groups}) > 1
        ]
        varied = ", ".join(differing) or "the questions asked"
        raise AnswerError(f"files of several settings ({varied}): name those of one")
    (group,) = groups
    if not group["baselines"]:
        raise AnswerError("no baseline (a vanilla file) among the files: --base-path names one")
    baseline = group["baselines"][0]
    tasks = dict(group["views"][baseline]["tasks"])
    if not tasks:
        reasons = [one["reason"] for one in group["views"][baseline]["not_compared"]]
        raise AnswerError(reasons[0] if reasons else "nothing to compare with the baseline")
    if category not in tasks:
        raise AnswerError(f"--category {category}: there are {', '.join(tasks)}")
    return group, baseline


def main(argv=None):
    """Write the figures and name them, a line each."""
    args = parse_args(argv)
    try:
        import matplotlib
    except ImportError:
        raise AnswerError("plot.py needs the package matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    document, _ = make_document(args)
    group, baseline = one_view(document, args.category)
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(figures.STYLE):
            picture = figures.Picture(group, baseline, args.category, args.width)
            for name in args.figures:
                save(figures.FIGURES[name](picture), folder / name, args)
    except OSError as error:
        raise AnswerError(f"--output {folder}: {error.strerror}") from None


def save(figure, path, args):
    """Write a figure in every format; None: there is nothing to draw."""
    if figure is None:
        print(f"no {path.name}: the files hold nothing for it")
        return
    import matplotlib.pyplot as plt

    for ending in args.formats:
        where = path.with_suffix(f".{ending}")
        figure.savefig(where, dpi=args.dpi, metadata=DATELESS[ending])
        print(where)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
