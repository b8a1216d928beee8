"""A stand-in for Ray that runs its workers one after another in this process."""

import os
import sys
from types import SimpleNamespace


class InProcess:
    """Ray's init, remote and get; `before(number)` is called ahead of each worker's work.

    Workers begin in `folder`, as those of a cluster do that was started elsewhere.
    """

    folder = "/"

    def __init__(self):
        self.workers, self.gpus = [], []
        self.before = lambda number: None

    def init(self, **options):
        assert options == {"ignore_reinit_error": True}

    def remote(self, num_gpus):
        def wrap(function):
            def call(*arguments):
                self.gpus.append(num_gpus)
                self.workers.append(arguments[1])
                return lambda: function(*arguments)

            return SimpleNamespace(remote=call)

        return wrap

    def get(self, futures):
        results, here = [], os.getcwd()
        for number, future in enumerate(futures):
            self.before(number)
            os.chdir(self.folder)
            try:
                results.append(future())
            finally:
                os.chdir(here)
        return results


def stand_in(monkeypatch):
    """Put it in the place of the module; without CUDA, as the tests' models are tiny."""
    module = InProcess()
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return module
