"""What stands for CUDA graphs on a CPU."""

from model.common.target.runtime import tensors_of


class Replays:
    """A capture whose replays run the function again into the tensors of the first call."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, function):
        self.captured += 1
        kept = function()

        def replay():
            self.replayed += 1
            for tensor, new in zip(tensors_of(kept), tensors_of(function())):
                tensor.copy_(new)

        return replay, kept


class Held(Replays):
    """Refuses to replay where the tensors of places() are not those of the capture: a real graph
    has their addresses."""

    def places(self) -> list[int]:
        """Addresses that a replay would read or write."""
        raise NotImplementedError

    def __call__(self, function):
        replay, result = super().__call__(function)
        captured = self.places()

        def checked():
            assert self.places() == captured
            replay()

        return checked, result
