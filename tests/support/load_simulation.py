"""A load run on a clock of its own, and an independent account of when everything has to happen.

Every duration is a multiple of 1/64 s, so that sums, differences and the records' rounding are
exact. After token t the target says t + 1 (counting.py); a draft from t is three tokens of which
the first t % 4 are right.
"""

from collections import deque
from types import SimpleNamespace

import numpy as np
from counting import counting_target
from recording import Around

from model.common.contract.sequence import PerSequence, SequenceDrafter
from model.common.load.queue import LoadQueue
from model.common.loop import clock
from model.common.loop.decode import Loop
from model.common.loop.sampling import Sampler
from model.common.loop.turns import StopRules

TICK, VOCAB, EOS, LIMIT, NUM_DRAFT = 1 / 64, 61, 60, 24, 3
LATE = TICK  # by which a sleep is too long


def prefill_s(longest: int) -> float:
    """Of a group of prompts; longest: its longest one's tokens."""
    return (2 + longest // 4) * TICK


def step_s(longest: int) -> float:
    """Of a step; longest: tokens of the longest sequence, root included."""
    return (1 + longest // 16) * TICK


class SimulatedTime:
    """Time that passes where it is told to."""

    unix = 0.0

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def sleep(self, seconds):
        assert seconds > 0
        self.time += seconds + LATE


class PretendedGpu:
    """Stands for torch.cuda: devices that work in simulated time, with a timer of their own.

    speed       of that timer, in its seconds a second of the host's
    busy_until  {device: when its queued work ends}
    """

    def __init__(self, host, speed):
        self.host, self.speed, self.busy_until = host, speed, {}

    def idle_at(self, device):
        return max(self.host.time, self.busy_until.get(device, 0.0))

    def synchronize(self, device):
        self.host.time = self.idle_at(device)

    def current_stream(self, device):
        return device

    def Event(self, enable_timing):
        assert enable_timing
        return _Event(self)


class _Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self, stream):
        self.time = self.gpu.idle_at(stream)

    def elapsed_time(self, later):
        assert max(self.time, later.time) <= self.gpu.host.time  # else CUDA says: not ready
        return float(np.float32(1e3 * (later.time - self.time) * self.gpu.speed))


def pretend_gpu(monkeypatch, host, speed=1.0):
    """Let clocks of CUDA devices ask a PretendedGpu, which is returned."""
    gpu = PretendedGpu(host, speed)
    monkeypatch.setattr(clock, "torch", SimpleNamespace(cuda=gpu))
    return gpu


class TimedTarget:
    """A target whose prefills and forwards take the stated time; steps fail where it is asked."""

    def __init__(self, inner, host, broken_step=None):
        self.inner, self.host, self.broken_step, self.steps = inner, host, broken_step, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def prefill(self, slots, ids, lengths, needs):
        self.host.time += prefill_s(max(lengths))
        return self.inner.prefill(slots, ids, lengths, needs)

    def forward(self, root, draft, longest, hidden):
        self.steps += 1
        if self.steps == self.broken_step:
            raise RuntimeError("planted")
        self.host.time += step_s(longest)
        return self.inner.forward(root, draft, longest, hidden)


class PartlyRight(SequenceDrafter):
    """Drafts what follows t, from the place t % 4 on one too many."""

    def start(self, ids):
        self.last = ids[-1]

    def observe(self, ids):
        self.last = ids[-1]

    def propose(self):
        right = self.last % 4
        return [(self.last + 1 + i + (i >= right)) % VOCAB for i in range(NUM_DRAFT)]


class SlowToBegin(Around):
    """A drafter that takes so many seconds to read prompts."""

    def __init__(self, inner, host, start_s):
        super().__init__(inner)
        self.host, self.start_s = host, start_s

    def start(self, prompt):
        self.host.time += self.start_s
        super().start(prompt)


def ids_of_text(turns, answers, system=None):
    """A prompter's render(): the text holds the ids; "no" has no prompt."""
    if turns[0] == "no":
        raise ValueError("planted")
    return [int(part) for part in turns[0].split()]


def fake_bench():
    """What a QuestionQueue needs of a Bench."""
    prompter = SimpleNamespace(render=ids_of_text, system=None, text=lambda ids, stop: str(ids))
    args = SimpleNamespace(num_choices=1, seed=0, max_new_tokens=LIMIT)
    return SimpleNamespace(prompter=prompter, args=args, history={}, stop=None)


def run(questions, schedule, num_slots, broken_step=None, start_s=0.0, host=None):
    """(records, queue) of a load run in simulated time; the loop is built anew where it breaks.

    start_s: that the drafter takes to read prompts
    """
    host, records = host or SimulatedTime(), []
    target = TimedTarget(counting_target(VOCAB, VOCAB), host, broken_step)
    drafter = SlowToBegin(PerSequence(PartlyRight, NUM_DRAFT), host, start_s)
    queue = LoadQueue(fake_bench(), questions, "m", records.append, schedule, host)
    while queue.unfinished:
        stop = StopRules(frozenset({EOS}))
        try:
            Loop(target, drafter, Sampler(), stop, num_slots, 100).run(queue)
        except RuntimeError as error:
            queue.fail(str(error))
    return records, queue


class Account:
    """What has to happen when, worked out request by request with plain numbers.

    facts  {id: {arrival, sent, begin, first, read (by the drafter, too), ends [s], lengths, ids,
           prompt (its length)}, of a request that failed {arrival, sent, failed}}
    idle   seconds asleep
    """

    def __init__(self, questions, schedule, num_slots, start_s=0.0):
        self.coming = deque(questions)
        self.clients, self.start_s = schedule.clients, start_s
        self.due = [0.0] * schedule.clients if schedule.clients else list(schedule.arrivals)
        self.queue, self.slots, self.facts = deque(), [None] * num_slots, {}
        self.time = self.idle = 0.0
        while self.admit() or self.sleep():
            if any(self.slots):
                self.step()

    def arrive(self, sent=None):
        while self.coming and self.due and self.due[0] <= self.time:
            question, arrival = self.coming.popleft(), self.due.pop(0)
            name = question["question_id"]
            sent_s = arrival if sent is None else sent
            self.facts[name] = {"arrival": arrival, "sent": sent_s}
            self.queue.append(question)

    def next(self):
        """The first prompt in the queue, without those that cannot be rendered."""
        self.arrive()
        while self.queue:
            question = self.queue.popleft()
            fact = self.facts[question["question_id"]]
            if question["turns"][0] != "no":
                ids = [int(part) for part in question["turns"][0].split()]
                return {"fact": fact, "prompt": ids, "answer": []}
            self.fail(fact)
        return None

    def fail(self, fact):
        fact["failed"] = self.time
        self.ended()

    def ended(self):
        if self.clients:
            self.due.append(self.time)

    def admit(self):
        while True:
            free = [slot for slot, answer in enumerate(self.slots) if answer is None]
            taken = [(slot, answer) for slot in free if (answer := self.next())]
            for _, answer in taken:
                if max(answer["prompt"]) >= VOCAB:
                    self.fail(answer["fact"])
            begun = [(slot, answer) for slot, answer in taken if "failed" not in answer["fact"]]
            if begun:
                begin = self.time
                self.time += prefill_s(max(len(answer["prompt"]) for _, answer in begun))
                first = self.time
                if any((answer["prompt"][-1] + 1) % VOCAB != EOS for _, answer in begun):
                    self.time += self.start_s
                for slot, answer in begun:
                    answer["fact"] |= {"begin": begin, "first": first, "read": self.time}
                    answer["fact"] |= {"ends": [], "lengths": [], "ids": answer["answer"]}
                    answer["fact"]["prompt"] = len(answer["prompt"])
                    self.slots[slot] = answer
                    self.add(slot, 1)
            if not taken or all(self.slots):
                return any(self.slots)

    def add(self, slot, num):
        """Commit up to `num` tokens; how many before the answer's end."""
        answer = self.slots[slot]
        for count in range(1, num + 1):
            last = (answer["prompt"] + answer["answer"])[-1]
            answer["answer"].append((last + 1) % VOCAB)
            if answer["answer"][-1] == EOS or len(answer["answer"]) == LIMIT:
                self.slots[slot] = None
                self.ended()
                return count
        return num

    def step(self):
        longest = max(len(a["prompt"]) + len(a["answer"]) for a in self.slots if a)
        self.time += step_s(longest)
        for slot, answer in enumerate(self.slots):
            if answer is not None:
                right = min(answer["answer"][-1] % 4, NUM_DRAFT)
                answer["fact"]["ends"].append(self.time)
                answer["fact"]["lengths"].append(self.add(slot, right + 1))

    def sleep(self):
        if not self.coming:
            return False
        if self.due[0] > self.time:
            slept = self.due[0] - self.time + LATE
            self.time, self.idle = self.time + slept, self.idle + slept
            self.arrive(self.time)
        return True
