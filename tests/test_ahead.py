"""Steps that begin before the ids of the last one are on the host: the same answers, and the order
of events. Graphs that replay on a CPU stand for CUDA's."""

import sys

import pytest
import torch
from conformance.cases import CASES, PROMPTS, VOCAB, Case
from oracle import decode, outputs
from replays import Replays

from model.common.contract.drafter import Draft, Drafter, EmptyDrafter
from model.common.loop import decode as loop
from model.common.loop.host_copy import HostCopy
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import CPU, Graphs, make_runtime


@pytest.fixture
def replayed(monkeypatch):
    """--runtime cudagraph on a CPU."""

    def make(name, forward, device=CPU):
        if name == "cudagraph":
            return Graphs(forward, Replays())
        return make_runtime(name, forward, device)

    for name, module in list(sys.modules.items()):
        if name.startswith("model.") and hasattr(module, "make_runtime"):
            monkeypatch.setattr(module, "make_runtime", make)
    # from a GPU ids are copied before the next replay overwrites them
    monkeypatch.setattr(loop, "host_copy", lambda tensor: HostCopy(tensor.clone()))


class StaticCase(Case):
    """A method under such a runtime."""

    def __init__(self, method, variant):
        super().__init__(method, variant)
        self.flags += ["--runtime", "cudagraph"]
        self.target = Target(self.world.target.model, "cudagraph")


class Noted(Drafter):
    """Passes everything on, and checks what a step says before its ids are known."""

    def __init__(self, inner):
        self.inner, self.needs, self.ahead = inner, inner.needs, inner.ahead

    def start(self, prefill, max_lengths, sampler):
        self.longest = max(len(ids) for ids in prefill.host_ids)
        self.inner.start(prefill, max_lengths, sampler)

    def propose(self):
        self.draft = self.inner.propose()
        return self.draft

    def observe(self, step):
        assert step.host_ids is None
        slack = step.max_committed - (self.longest + int(step.count.max()))
        assert 0 <= slack <= self.draft.depth
        self.longest += int(step.count.max())
        self.inner.observe(step)


def told(turns):
    """What a turn says but for times."""
    return [
        (turn.output_ids, turn.finish_reason, turn.accept_lengths, turn.drafted, turn.depth)
        for turn in turns
    ]


def compared(case, **options):
    """(turns ahead, turns in step), both a second time: then graphs are replayed."""
    found = []
    for ahead in (True, False):
        case.target.runs_ahead = ahead
        for _ in range(2):
            turns = case.decode(PROMPTS, **options)
        found.append(turns)
    return found


AHEAD = {"vanilla", "medusa", "hydra", "eagle", "eagle2", "eagle3", "recycling", "space"}


@pytest.mark.parametrize("method, variant", CASES, ids=lambda part: part or "usual")
def test_the_same_answers(replayed, method, variant):
    """One at a time and in a batch whose rows end at different steps, greedy and sampling."""
    case = StaticCase(method, variant)
    assert case.drafter.ahead == (method in AHEAD)
    if not case.drafter.ahead:
        pytest.skip("waits for the host")
    known = [case.world.answer(prompt) for prompt in PROMPTS]
    for batch in (1, len(PROMPTS)):
        ahead, in_step = compared(case, batch=batch)
        assert told(ahead) == told(in_step)
        assert outputs(ahead) == known
        sampling = {"sampler": Sampler(0.8), "batch": batch, "limit": 7}
        ahead, in_step = compared(case, **sampling)
        assert told(ahead) == told(in_step)
    noted = Noted(case.drafter)
    case.target.runs_ahead = True
    assert outputs(case.decode(PROMPTS, drafter=noted, batch=1)) == known


def events_of(target, drafter, monkeypatch):
    """What happens in an answer of 6 tokens, in order."""
    events = []

    def noting(owner, name):
        call = getattr(owner, name)

        def noted(*args, **kwargs):
            events.append(name)
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    noting(target, "forward")
    noting(drafter, "propose")
    noting(HostCopy, "tolist")
    turn = decode(target, drafter, PROMPTS[:1], 6)[0]
    assert len(turn.accept_lengths) == events.count("tolist")
    assert all(len(times) == len(turn.accept_lengths) for times in turn.phase_s.values())
    assert turn.wall_s >= turn.prefill_s + sum(map(sum, turn.phase_s.values()))
    return events


class Stale(EmptyDrafter):
    """Guesses 1 whatever comes, and never looks at a step."""

    def propose(self):
        return Draft.chain(torch.ones(1, 2, dtype=torch.long))


def test_order_of_events(replayed, monkeypatch):
    """A draft is made before the ids of the last step are asked for, the baseline's forward too."""
    target = StaticCase("vanilla", "").target
    target.runs_ahead = True
    events = events_of(target, EmptyDrafter(), monkeypatch)
    assert events == ["propose", "forward"] + ["propose", "forward", "tolist"] * 5
    events = events_of(target, Stale(), monkeypatch)
    assert events[:5] == ["propose", "forward", "propose", "tolist", "forward"]
    assert events[-2:] == ["propose", "tolist"]  # the last draft is thrown away
    target.runs_ahead = False
    events = events_of(target, EmptyDrafter(), monkeypatch)
    assert events == ["propose", "forward", "tolist"] * 5


class Counting(EmptyDrafter):
    """Notes what every step says of each row."""

    def start(self, prefill, max_lengths, sampler):
        super().start(prefill, max_lengths, sampler)
        self.counts, self.roots = [], [prefill.next_token.tolist()]

    def observe(self, step):
        self.counts.append(step.count.tolist())
        self.roots.append(step.next_token.tolist())
        valid = [count > 0 for count in self.counts[-1]]
        assert [row[0] >= 0 for row in step.path.tolist()] == valid
        assert [row[0] >= 0 for row in step.new_tokens.tolist()] == valid


def test_rows_that_end_unseen_count_nothing(replayed):
    """The baseline's next forward has begun when the host reads that a row of a batch has ended."""
    case, found = StaticCase("vanilla", ""), []
    known = [case.world.answer(prompt) for prompt in PROMPTS]
    ends = max(range(VOCAB), key=lambda token: len({(ids + [token]).index(token) for ids in known}))
    stop = StopRules(frozenset({ends}))
    for case.target.runs_ahead in (True, False):
        for _ in range(2):
            drafter = Counting()
            turns = case.decode(PROMPTS, drafter=drafter, stop=stop)
        steps = [len(turn.accept_lengths) for turn in turns]
        assert len(set(steps)) > 1 and [sum(row) for row in zip(*drafter.counts)] == steps
        found.append((drafter.counts, drafter.roots))
    assert found[0] == found[1]


class Asking(EmptyDrafter):
    """Wants to know what was committed."""

    ahead = False

    def start(self, prefill, max_lengths, sampler):
        super().start(prefill, max_lengths, sampler)
        self.seen = prefill.host_ids[0][-1:]

    def observe(self, step):
        self.seen += step.host_ids[0]


def test_drafters_of_the_host_are_waited_for(replayed):
    """One that asks for host_ids gets them, whatever the target could do."""
    target, drafter = StaticCase("vanilla", "").target, Asking()
    target.runs_ahead = True
    assert decode(target, drafter, PROMPTS[:1], 6)[0].output_ids == drafter.seen


def test_only_asynchronous_static_targets_run_ahead():
    model = StaticCase("vanilla", "").world.target.model
    assert not Target(model).runs_ahead
    assert not Target(model, "compile").runs_ahead  # a CPU has computed before it returns
