"""Which energy belongs to which answer, the steady window, the summary of a run."""

import json
from types import SimpleNamespace

import pytest
from energy_curves import curve, gpu_meter, log_of, played, sampler_of, turn_of

from model.common.records.energy import log as energy
from model.common.records.energy.curve import Track
from model.common.records.energy.log import EnergyLog, steady_window, union

LINE = curve((0, 0.0), (100, 1000.0))  # 10 W


def test_a_turn_alone_has_the_energy_of_its_time():
    log = log_of(sampler_of(LINE))
    log.begun(0, 2.0)
    assert log.joules(log.ended(0, turn_of(3.0))) == 30


def test_turns_share_equally_at_every_moment():
    """0 .. 6 in slot 0, 2 .. 4 in slot 1, 3 .. 8 in slot 2."""
    log = log_of(sampler_of(LINE), slots=3)
    log.begun(0, 0.0)
    log.begun(1, 2.0)
    log.begun(2, 3.0)
    second = log.ended(1, turn_of(2.0))
    first = log.ended(0, turn_of(6.0))
    third = log.ended(2, turn_of(5.0))
    found = [log.joules(share) for share in (first, second, third)]
    wanted = [20 + 5 + 10 / 3 + 10, 5 + 10 / 3, 10 / 3 + 10 + 20]
    assert found == pytest.approx(wanted) and sum(found) == pytest.approx(80)


def test_time_in_which_nothing_ran_is_nobodys():
    log = log_of(sampler_of(LINE))
    shares = []
    for begin in (1.0, 5.0, 9.0):
        log.begun(0, begin)
        shares.append(log.ended(0, turn_of(2.0)))
    assert [log.joules(share) for share in shares] == [20, 20, 20]
    (entry,) = log.summary()
    assert entry["timed_j"] == 60 and entry["timed_s"] == 6
    assert entry["run_j"] == 110 and entry["run_s"] == 11 and entry["answers"] == 3


def test_many_random_turns_add_up_to_the_energy_of_their_union():
    import random

    chance = random.Random(3)
    points, joules = [], 0.0
    for when in range(200):
        points.append((when / 2, joules))
        joules += chance.uniform(0, 50)
    track = curve(*points)
    log = log_of(sampler_of(track), slots=4)
    now, running, shares = 0.0, {}, []
    for _ in range(300):
        now += chance.uniform(0, 0.6)
        if len(running) < 4 and chance.random() < 0.5:
            slot = next(slot for slot in range(4) if slot not in running)
            running[slot] = now
            log.begun(slot, now)
        elif running:
            slot = chance.choice(sorted(running))
            shares.append(log.ended(slot, turn_of(now - running.pop(slot))))
    for slot in list(running):
        shares.append(log.ended(slot, turn_of(now - running.pop(slot))))
    total = sum(log.joules(share) for share in shares)
    assert len(shares) > 100 and now < 99
    assert total == pytest.approx(sum(track.between(*span) for span in union(log.spans)))
    assert total < track.between(0, now) - 1


def test_a_failed_turn_has_a_share_too(monkeypatch):
    log = log_of(sampler_of(LINE), slots=3)
    log.begun(0, 0.0)
    log.begun(1, 0.0)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: 4.0)
    failed = log.failed(1)
    never = log.failed(1)  # nothing had begun in the slot
    answered = log.ended(0, turn_of(6.0))
    assert [log.joules(share) for share in (failed, never, answered)] == [20, 0, 40]
    log.begun(2, 7.0)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: 9.0)
    alone = log.failed(2)
    assert log.joules(failed, answered, alone) == 20 + 40 + 20 and log.joules() == 0
    (entry,) = log.summary()
    assert entry["answers"] == 1 and (entry["timed_s"], entry["timed_j"]) == (8, 80)


def test_several_devices_are_added_and_one_that_died_leaves_no_sum():
    other = curve((0, 0.0), (5, 100.0), lost="GPU is lost")
    log = log_of(sampler_of(LINE, other))
    log.begun(0, 0.0)
    whole = log.ended(0, turn_of(4.0))
    log.begun(0, 4.0)
    late = log.ended(0, turn_of(2.0))
    assert log.joules(whole) == 120 and log.joules(late) is None
    (entry,) = log.summary()
    assert "timed_j" not in entry and "run_j" not in entry
    assert entry["devices"][0]["timed_j"] == 60
    assert "timed_j" not in entry["devices"][1] and entry["devices"][1]["lost"] == "GPU is lost"


def test_a_record_waits_for_the_sample_behind_its_end():
    track = curve((0, 0.0), (5, 50.0))
    log = log_of(sampler_of(track), slots=2)
    written = []
    for slot in (0, 1):
        log.begun(slot, 1.0)
    first = log.ended(0, turn_of(3.0))
    log.when_known(lambda: written.append(log.joules(first)))
    assert written == [15]
    second = log.ended(1, turn_of(6.0))
    log.when_known(lambda: written.append(log.joules(second)))
    assert written == [15]
    track.times.append(8)
    track.joules.append(80.0)
    log.settle()
    assert written == [15, 15 + 30]


def test_without_a_sampler_nothing_waits_and_nothing_has_an_energy():
    log, written = EnergyLog(None), []
    log.ready()
    log.begun(0, 1.0)
    for slot in (0, 1):  # of a source that never says when a turn begins, too
        share = log.ended(slot, turn_of(3.0))
        log.when_known(lambda share=share: written.append(log.joules(share)))
    assert log.joules(log.failed(2)) is None
    assert written == [None, None] and log.summary() == []


# the window of ML.ENERGY


def independent(firsts, others, slots):
    """The window by their words: from the moment at which B requests have their first token to
    that at which N - B have."""
    begin = min(t for t in firsts if sum(f <= t for f in firsts) >= slots)
    end = min(t for t in firsts if sum(f <= t for f in firsts) >= len(firsts) - slots)
    return begin, end, sum(begin < t <= end for t in [*firsts, *others])


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_the_steady_window(slots):
    import random

    chance = random.Random(slots)
    firsts = [chance.uniform(0, 30) for _ in range(12)]
    others = [chance.uniform(0, 40) for _ in range(100)]
    tokens = [(when, 1, True) for when in firsts] + [(when, 1, False) for when in others]
    chance.shuffle(tokens)
    assert steady_window(tokens, slots) == independent(firsts, others, slots)


def test_too_few_requests_have_no_steady_window():
    tokens = [(float(when), 1, True) for when in range(8)]
    assert steady_window(tokens, 4) is None and steady_window(tokens, 5) is None
    assert steady_window(tokens, 3) == (2.0, 4.0, 2)


def test_the_summary_of_a_load_run_has_the_window():
    log = log_of(sampler_of(LINE), slots=2)
    for number in range(6):  # two at a time, of 4 s; first tokens after 1 s, 3 tokens a step
        log.begun(number % 2, float(number // 2 * 4))
        if number % 2:
            for slot in (0, 1):
                log.ended(slot, turn_of(4.0, 1.0, [2.0, 4.0], [3, 3]))
    (entry,) = log.summary(load=True)
    assert "steady" not in log.summary()[0]
    assert entry["steady"] == {
        "slots": 2,
        "requests": 6,
        "begin_s": 1.0,
        "end_s": 5.0,
        "joules": 40.0,
        "tokens": 2 * 6 + 2,
        "joules_per_token": pytest.approx(40 / 14, abs=1e-6),
        "full": 1.0,
    }


# the meta


def test_the_summary_of_a_gpu(monkeypatch):
    rates = [SimpleNamespace(gpu=percent, memory=10) for percent in (0, 0, 40, 60, 80)]
    meter = gpu_meter(
        monkeypatch,
        millijoules=[0, 0, 200_000, 700_000, 900_000],
        milliwatts=[0, 100_000, 300_000, 600_000, 200_000],
        temperature=[0, 40, 50, 70, 60],
        rates=rates,
        reasons=[0, 0x1, 0x4, 0x44, 0x0],
    )
    sampler = sampler_of(Track(meter))
    sampler.idle_w = [60.0]
    for when in (0, 1, 2, 3):
        sampler.tracks[0].take(when)
    log = log_of(sampler)
    log.begun(0, 0.5)
    log.ended(0, turn_of(2.0))
    log.last = 3.0
    (entry,) = log.summary()
    (device,) = entry["devices"]
    assert device["timed_j"] == 100 + 500 + 100 and device["run_j"] == 900
    assert (device["mean_w"], device["peak_w"], device["idle_w"]) == (350, 600, 60)
    assert device["utilization"] == 45 and device["temperature_c"] == 70
    assert device["throttled"] == {"power cap": 0.5, "hardware thermal slowdown": 0.25}
    assert device["num_samples"] == 4 and device["power_limit_w"] == 700
    assert device["samples"]["t_s"] == [0, 1, 2, 3]
    assert device["samples"]["joules"] == [0, 200, 700, 900]
    assert device["samples"]["power_w"] == [100, 300, 600, 200]
    assert entry["idle_w"] == 60 and entry["interval_s"] == 0.1
    json.dumps(entry, allow_nan=False)


def test_samples_are_thinned():
    track = curve(*((when / 10, float(when)) for when in range(5001)))
    track.samples = [(when, {}) for when in track.times]
    log = log_of(sampler_of(track))
    log.begun(0, 0.0)
    log.ended(0, turn_of(500.0))
    samples = log.summary()[0]["devices"][0]["samples"]
    assert len(samples["t_s"]) == len(samples["joules"]) <= energy.MOST_SAMPLES
    assert (
        samples["t_s"][1] == 1.1
        and samples["joules"][1] == 11
        and set(samples)
        == {
            "t_s",
            "joules",
        }
    )


def test_peak_power_of_a_counter_is_the_steepest_part():
    track = played([0, 1, 2, 3], (0.0, {}), (10.0, {}), (50.0, {}), (55.0, {}))
    log = log_of(sampler_of(track))
    log.begun(0, 0.0)
    log.ended(0, turn_of(3.0))
    (device,) = log.summary()[0]["devices"]
    assert (device["peak_w"], device["run_j"]) == (40, 55)
    assert "idle_w" not in device and "throttled" not in device and "temperature_c" not in device
