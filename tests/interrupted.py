"""A training that is interrupted, for tests of how it goes on."""


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
