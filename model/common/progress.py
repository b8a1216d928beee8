"""Progress of a run: questions, remaining time, running mean accepted tokens and speed."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """A tqdm bar; quiet when the output is not a terminal."""

    def __init__(self, total: int):
        self.bar = tqdm(total=total, unit="question", disable=None, dynamic_ncols=True)
        self.tokens, self.seconds, self.steps, self.accepted = 0, 0.0, 0, 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def add(self, record: dict) -> None:
        """Count one answered question."""
        for choice in record["choices"]:
            self.tokens += sum(choice["new_tokens"])
            self.seconds += sum(choice["wall_time"])
            self.steps += len(choice["accept_lengths"])
            self.accepted += sum(choice["accept_lengths"])
        self.bar.set_postfix_str(
            f"accepted {self.accepted / max(self.steps, 1):.2f}, "
            f"{self.tokens / max(self.seconds, 1e-9):.1f} tokens/s",
            refresh=False,
        )
        self.bar.update()

    def say(self, line: str) -> None:
        """A line beside the bar."""
        tqdm.write(line, file=sys.stderr)
