"""An answer in the terminal, step by step: what each step committed, and out of how many drafted.

Every step begins with a mark, |4 for one that committed four tokens, and in a terminal its tokens
are shaded by that number. With --against FILE the other file's answer follows, and the first token
in which the two differ is marked in both: >>token<<. Without --tokenizer-path the steps are shown
as ids, below the text. Control characters of an answer are shown as escapes, never sent.

Run:  python evaluation/show.py ANSWERS/eagle2.jsonl --question-id 17 --tokenizer-path TARGET
      python evaluation/show.py ANSWERS/eagle2.jsonl --question-id 17 --against ANSWERS/pld.jsonl

Exit status: 0; 1 where --against has another answer; 2 bad input.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from any folder

from evaluation.answers.differences import first_difference  # noqa: E402
from evaluation.answers.meta import AnswerError  # noqa: E402
from evaluation.answers.reader import read_answers  # noqa: E402
from evaluation.cli import Parser, load_tokenizer, run, warn  # noqa: E402
from evaluation.pictures.pieces import Pieces  # noqa: E402
from evaluation.pictures.steps import turns_of  # noqa: E402
from model.common.visible import visible  # noqa: E402

SHADES = (236, 24, 25, 31, 32, 38)  # of the 256 colours: behind 1, 2, ... 6 and more tokens
PLAIN, DIFFERS = "\x1b[0m", "\x1b[1;97;41m"


def parse_args(argv=None):
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("answers", metavar="ANSWERS", help="answer file")
    parser.add_argument("--question-id", required=True, help="as the file has it")
    parser.add_argument("--against", metavar="FILE", help="another method's answer file")
    parser.add_argument("--tokenizer-path", help="the target's, for the words of each token")
    parser.add_argument(
        "--steps", action="store_true", help="a line a step: tokens, accepted of drafted, text"
    )
    parser.add_argument(
        "--colour",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: in a terminal where NO_COLOR is not set",
    )
    return parser.parse_args(argv)


class Painter:
    """Puts shades and marks around texts; without colours the texts alone."""

    def __init__(self, choice):
        terminal = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.coloured = choice == "always" or (choice == "auto" and terminal)

    def step(self, text, length):
        """The text of a step that committed so many tokens; 0: the prefill's."""
        if not self.coloured or not length:
            return text
        shade = f"\x1b[97;48;5;{SHADES[min(length, len(SHADES)) - 1]}m"
        lines = text.replace(PLAIN, PLAIN + shade).split("\n")  # no colour runs on to a line's end
        return "\n".join(f"{shade}{line}{PLAIN}" if line else "" for line in lines)

    def difference(self, text):
        """The first token that differs."""
        return f"{DIFFERS}>>{text}<<{PLAIN}" if self.coloured else f">>{text}<<"


def question_of(answers, name):
    """The Question whose id reads like `name`."""
    for question_id, question in answers.questions.items():
        if str(question_id) == name:
            return question
    ids = visible(", ".join(map(str, list(answers.questions)[:10])))
    raise AnswerError(f"{answers.path}: no question {name}; its ids begin with {ids}")


def partings(turns, others):
    """{(choice, turn): token} where two lists of Turns first differ; by text without ids: -1."""
    theirs, found = {(turn.choice, turn.turn): turn for turn in others}, {}
    for turn in turns:
        other = theirs.get((turn.choice, turn.turn))
        if other is None:
            continue
        by_ids = turn.ids is not None and other.ids is not None
        place = first_difference(turn.ids, other.ids) if by_ids else None
        if not by_ids and turn.text != other.text:
            place = -1
        if place is not None:
            found[turn.choice, turn.turn] = place
    return found


def summary_line(turn):
    """'turn 0: 85 tokens, 16 steps, 5.25 a step, 69 of 944 drafted accepted, ended by stop'."""
    parts = [] if turn.ids is None else [f"{len(turn.ids)} tokens"]
    if turn.lengths is not None:
        parts.append(f"{len(turn.lengths)} steps")
        if turn.lengths:
            parts.append(f"{sum(turn.lengths) / len(turn.lengths):.2f} a step")
        if turn.drafted is not None:
            accepted = sum(max(0, length - 1) for length in turn.lengths)
            parts.append(f"{accepted} of {sum(turn.drafted)} drafted accepted")
    if turn.finish is not None:
        parts.append(f"ended by {turn.finish}")
    choice = f"choice {turn.choice}, " if turn.choice else ""
    return visible(f"{choice}turn {turn.turn}: {', '.join(parts) or 'no counts recorded'}")


def turn_lines(turn, pieces, parting, painter, by_step):
    """The lines of one Turn; parting: its first token that another answer has not."""
    lines = [summary_line(turn)]
    if turn.ids is None or turn.spans is None:
        return [*lines, visible(turn.text)]
    if pieces is None:
        lines.append(visible(turn.text))
    texts = pieces.of(turn.ids) if pieces else [f" {token}" for token in turn.ids]
    texts = [visible(text) for text in texts]
    if parting is not None and parting >= 0:
        if parting < len(texts):
            texts[parting] = painter.difference(texts[parting])
        else:
            texts[-1] += painter.difference("(end)")
    shown = []
    for step, (begin, end) in enumerate(turn.spans):
        length = end - begin if step else 0
        text = "".join(texts[begin:end])
        if by_step:
            line = text.replace("\n", "\\n")
            shown.append(f"{step_words(turn, step)}  {painter.step(line, length)}\n")
        else:
            shown.append((f"|{length}" if step else "") + painter.step(text, length))
    return [*lines, "".join(shown).rstrip("\n")]


def step_words(turn, step):
    """'   3: 7 tokens,  6 of 59 drafted', as wide for every step."""
    if not step:
        return f"{'prefill':>5}: 1 token{'':17}"
    length = turn.lengths[step - 1]
    words = f"{step:>7}: {length} token{'s' * (length != 1)}"
    if turn.drafted is not None:
        words += f", {max(0, length - 1)} of {turn.drafted[step - 1]} drafted"
    return f"{words:<33}"


def show(answers, question, differing, pieces, painter, by_step):
    """Print one file's answer."""
    print(visible(f"{answers.label}: question {question.question_id} ({question.category})"))
    if question.error:
        print(f"failed: {visible(question.error)}")
    for turn in turns_of(question):
        parting = differing.get((turn.choice, turn.turn))
        print("\n".join(turn_lines(turn, pieces, parting, painter, by_step)))


def main(argv=None):
    """Print the answers; 1 where the two differ."""
    args = parse_args(argv)
    files = [read_answers(path) for path in filter(None, (args.answers, args.against))]
    for message in (message for answers in files for message in answers.warnings):
        warn(message)
    questions = [question_of(answers, args.question_id) for answers in files]
    pieces = Pieces(load_tokenizer(args.tokenizer_path)) if args.tokenizer_path else None
    painter, differing = Painter(args.colour), {}
    if len(questions) == 2:
        differing = partings(*map(turns_of, questions))
    for answers, question in zip(files, questions):
        show(answers, question, differing, pieces, painter, args.steps)
        print()
    if len(questions) < 2:
        return 0
    for (choice, turn), place in differing.items():
        where = f"choice {choice}, turn {turn}" if choice else f"turn {turn}"
        print(f"{where}: the texts differ" if place < 0 else f"{where}: they differ at {place}")
    same = not differing and not any(question.error for question in questions)
    print("the two are equal" if same else "the two differ")
    return 0 if same else 1


if __name__ == "__main__":
    run(main, coloured=True)
