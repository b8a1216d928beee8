"""Every method with target and drafter on several devices: pretended ones, see pretend_devices."""

import pytest
from harness_runs import answer, ids_of, messages, read_meta
from pretend_devices import device, pretended, seen
from tiny_methods import TINY_FLAGS, build, decode, tiny_target

from evaluation.answers.meta import placement_text
from evaluation.summary.rows import notes_of
from model.common.loop import decode as loop
from model.common.loop.clock import Clock
from model.common.loop.turns import StopRules
from model.common.target.loading import load_target
from model.common.target.placement import Share

PROMPTS = [[*range(3, 40)], [5, 9, 5, 9, 5, 9, 5], [*range(80, 20, -2)]]
DRAFTING = ("sps", "specdecpp", "specexec", "sd2")  # with a draft model
HEADS = ("medusa", "hydra", "eagle", "eagle2", "eagle3")
LISTS = ("pld", "recycling", "lookahead", "rest", "samd", "nasd", "space")


def answers(method, paths, target, num_slots, *flags):
    """Ids and accept lengths of a method on a loaded target."""
    own = TINY_FLAGS.get(method, lambda paths: [])({**paths, "target": paths["model"]})
    drafter = build(method, paths["model"], target, [*own, *flags])
    return decode(target, drafter, PROMPTS, StopRules(), 10, num_slots)


@pytest.mark.parametrize("method", (*DRAFTING, *HEADS, *LISTS))
def test_ids_are_those_of_one_device(method, paths, monkeypatch):
    """Target on two devices, draft model on two others; heads with the target's last layer."""
    path, num_slots = tiny_target(method, paths["model"]), 1 if method == "sd2" else 2
    plain = load_target(path, "float32", "cpu", "eager")
    expected = answers(method, paths, plain, num_slots, "--turned-rows", "none")
    seen(monkeypatch, 4)
    with pretended():
        target = load_target(path, "float32", Share((device(0), device(1))), "eager")
        assert {str(where) for *_, where in target.layers} == {"xla:0", "xla:1"}
        num = 1 + (method == "sd2")  # the other tiny draft models have one layer
        strategy = f"multi-gpu-ratio:2:{num}"
        assert answers(method, paths, target, num_slots, "--gpu-strategy", strategy) == expected


def test_a_command_tells_where_everything_is(paths, monkeypatch, capfd):
    """Ids, meta, line on stderr, and the rows of the tools."""
    seen(monkeypatch, 4)
    flags = ["--drafter-path", paths["draft"], "--device", "auto", "--turned-rows", "none"]
    where = "sps", paths["model"], paths["questions"]
    ids, lines, found, waited = {}, {}, {}, {}

    class Noting(Clock):
        def __init__(self, device, host, others):
            waited.setdefault(strategy, set()).update(map(str, others))
            super().__init__(device, host, others)

    monkeypatch.setattr(loop, "Clock", Noting)
    for strategy in ("same", "separate", "multi-gpu-ratio:2:1"):
        out = paths["tmp"] / f"{strategy}.jsonl"
        more = [*flags, "--question-end", 2, "--max-new-tokens", 8, "--gpu-strategy", strategy]
        with pretended():
            ids[strategy] = ids_of(answer(*where, out, *more))
        lines[strategy] = [line for line in messages(capfd) if line.startswith("placement")]
        found[strategy] = read_meta(out)
    assert ids["same"] == ids["separate"] == ids["multi-gpu-ratio:2:1"]
    same, separate, ratio = (meta["placement"] for meta in found.values())
    assert list(waited.values()) == [{"xla:0"}, {"xla:1"}, {"xla:2"}]  # for a drafter's work
    assert same["target"].keys() == same["drafter"].keys() == {"xla:0"} and not lines["same"]
    assert "crossings" not in same and same["peak_bytes"] == {}
    assert separate["target"] == same["target"] and separate["drafter"].keys() == {"xla:1"}
    assert [part["layers"] for part in ratio["target"].values()] == [2, 1]
    weights = [part["weight_bytes"] for part in ratio["target"].values()]
    assert sum(weights) == same["target"]["xla:0"]["weight_bytes"] and min(weights) > 1e5
    assert ratio["drafter"] == {"xla:2": same["drafter"]["xla:0"]}
    shared = [meta["shared"] for meta in found.values()]
    assert shared[0] == shared[1] and shared[0]["gpu_map"] is None
    assert (shared[2]["num_gpus_per_model"], shared[2]["gpu_map"]) == (2, "by bytes")
    check_crossings(separate["crossings"], ratio["crossings"])
    (line,) = lines["multi-gpu-ratio:2:1"]
    for words in ("target on xla:0", "drafter on xla:2", "verify xla:0 > xla:1"):
        assert words in line
    places = "target on xla:0 0.00 GB, xla:1 0.00 GB; drafter on xla:2 0.00 GB"
    assert placement_text(same) is placement_text(None) is None
    side = {"placement": ratio | {"peak_bytes": {"xla:1": 2.5e9}}, "runtime_ran": None}
    (note,) = notes_of(side | {"runtime": "eager"})
    assert note == f"placement multi-gpu-ratio:2:1: {places}; at most xla:1 2.50 GB"


def check_crossings(separate, ratio):
    """separate: only tokens cross; ratio: the hidden states of a forward as well."""
    rows = [
        {(row["phase"], row["from"], row["to"]): row for row in one["per_step"]}
        for one in (separate, ratio)
    ]
    assert separate["steps"] >= 2 and {phase for phase, *_ in rows[0]} == {"draft"}
    draft = rows[0]["draft", "xla:1", "xla:0"]
    assert 1.5 < draft["transfers"] <= 2  # ids and Draft.sound, where there is room for a draft
    assert 9 <= draft["bytes"] <= 8 * 15 + 1
    states = rows[1]["verify", "xla:0", "xla:1"]
    width = 64 * 4  # bytes of a row of hidden states
    assert states["bytes"] > 2 * width and states["transfers"] == 3  # and their cosines and sines
    assert rows[1]["verify", "xla:1", "xla:0"]["transfers"] == 4  # ids, positions, columns, mask
