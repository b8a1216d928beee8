"""A training that is interrupted, and what its log says, for tests of how it goes on."""

import json


def interrupted(training, stop_at: int | None):
    """A subclass of a trainer that stops as by Ctrl-C after stop_at losses; None = never."""

    class Stopping(training):
        calls = 0

        def loss(self, batch):
            self.calls += self.module.training
            if stop_at and self.calls > stop_at:
                raise KeyboardInterrupt
            return super().loss(batch)

    return Stopping


def curve(folder):
    """log.jsonl without times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_s")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]
