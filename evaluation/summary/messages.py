"""What methods said on stderr, read again from their logs: warnings, failed questions, crashes."""

import re

from evaluation.cli import PROGRESS

MOST = 5  # messages of a row that are repeated
TRACEBACK = "Traceback (most recent call last):"
# a Python warning: place, kind and text; the line of code below it is indented
WARNING = re.compile(r"\S+\.py:\d+: (\w*Warning: .*)")


def messages_of(text):
    """The messages in a log, in order, each once; of a traceback its last line.

    Progress, which is no message, and lines that belong to the one above are left out.
    """
    found, traced = [], False
    for line in re.split(r"[\r\n]+", text):
        if line == TRACEBACK:
            traced = True
        elif traced:
            traced = not line or line[0].isspace()
            if not traced:
                found.append(line)
        elif line and not line[0].isspace() and not PROGRESS.match(line):
            found.append(WARNING.sub(r"\1", line))
    return list(dict.fromkeys(found))


def message_lines(asked):
    """Lines to be repeated at the end: 'pld, sps: warning: ...'; none where nothing was said.

    asked: the Asked rows, with their logs
    """
    by_message, lines = {}, []
    said = {row.name: messages_of(read(row.log)) for row in asked}
    for name, messages in said.items():
        for message in messages:
            by_message.setdefault(message, []).append(name)
    shown = dict.fromkeys(said, 0)
    for message, names in by_message.items():
        if any(shown[name] < MOST for name in names):
            lines.append(f"  {who(names, len(asked))}: {message}")
        for name in names:
            shown[name] += 1
    for row in asked:
        if shown[row.name] > MOST:
            lines.append(f"  {row.name}: {shown[row.name] - MOST} more in {row.log}")
        if row.status > 1:
            lines.append(f"  {row.name}: {ended(row.status)}")
    return ["messages:", *lines] if lines else []


def who(names, num_rows):
    """'pld, sps', or 'all rows'."""
    return "all rows" if len(names) == num_rows > 1 else ", ".join(names)


def ended(status):
    """Why a row has no answers, by its exit status."""
    if status == 2:
        return "not run: left out"
    return f"not run: it crashed (exit status {status})"


def read(path):
    """A log's text; one that was never written is empty."""
    if not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
