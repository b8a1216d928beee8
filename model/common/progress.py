"""Progress of a run: questions, remaining time, running mean accepted tokens and speed."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from model.common.visible import visible

EVERY_S = 60.0  # seconds between two lines where there is no bar


class Progress:
    """A tqdm bar in a terminal; elsewhere a line a minute on stderr, and one at the end.

    The bar is on stderr, or on stdout where only that is a terminal. Lines come when a question is
    done, so that nothing runs beside the decoding that is timed.

    total      questions to be answered
    clock      seconds that never go back
    """

    def __init__(self, total: int, clock=time.monotonic):
        terminal = next((out for out in (sys.stderr, sys.stdout) if out.isatty()), None)
        self.bar = None
        if terminal is not None:
            self.bar = tqdm(total=total, unit="question", file=terminal, dynamic_ncols=True)
        self.total, self.clock = total, clock
        self.begin = self.told = clock()
        self.done, self.tokens, self.seconds, self.steps, self.accepted = 0, 0, 0.0, 0, 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.close()
        elif self.done:
            self._line(f"in {_minutes(self.clock() - self.begin)}")

    def add(self, record: dict) -> None:
        """Count one answered question."""
        self.done += 1
        for choice in record["choices"]:
            self.tokens += sum(choice["new_tokens"])
            self.seconds += sum(choice["wall_time"])
            lengths = choice.get("accept_lengths", [])  # a server need not say them
            self.steps += len(lengths)
            self.accepted += sum(lengths)
        now = self.clock()
        if self.bar is not None:
            self.bar.set_postfix_str(self._means(), refresh=False)
            self.bar.update()
        elif now - self.told >= EVERY_S and self.done < self.total:
            self.told = now
            left_s = (now - self.begin) / self.done * (self.total - self.done)
            self._line(f"{_minutes(left_s)} left")

    def _means(self) -> str:
        known = f"{self.accepted / self.steps:.2f}" if self.steps else "-"
        return f"accepted {known}, {self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"

    def _line(self, when: str) -> None:
        line = f"{self.done} of {self.total} questions, {when}, {self._means()}"
        print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """A line beside the bar."""
        tqdm.write(visible(line), file=sys.stderr)


def _minutes(seconds: float) -> str:
    """'01:20' or '2:03:04'."""
    return tqdm.format_interval(round(seconds))
