"""SpS: exactness, the draft model's cache and proposals against slow references."""

import copy

import pytest
import torch
from conftest import make_model, make_prompts
from test_hydra import replaying

from model.common.contract.drafter import Drafter, EmptyDrafter, Needs
from model.common.loop.decode import generate
from model.common.loop.sampling import Sampler, seed_of
from model.common.loop.turns import StopRules
from model.common.target.model import Target
from model.common.target.runtime import Graphs
from model.sps.drafter import SpSDrafter

SCHEDULES = ("constant", "heuristic", "confidence")
LIMIT = 30


def noisy_copy(scale=0.02):
    """The target's weights with noise: it is right often, not always."""
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


DRAFTS = {
    "target": make_model,
    "random": lambda: make_model(seed=1, num_hidden_layers=1),
    "noisy": noisy_copy,
}


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.fixture(scope="module")
def drafts():
    return {name: Target(make()) for name, make in DRAFTS.items()}


def sps(draft, target, schedule="constant", num_draft=4, confidence=0.3):
    return SpSDrafter(draft, target, schedule, num_draft, confidence)


def decode(target, drafter, prompts, limit=LIMIT, stop=None, sampler=None, seeds=None):
    seeds = seeds or [1000 + len(prompt) for prompt in prompts]
    stop = stop or StopRules()
    return generate(target, drafter, prompts, sampler or Sampler(), seeds, stop, limit)


@pytest.fixture(scope="module")
def baseline(target):
    return [decode(target, EmptyDrafter(), [prompt])[0].output_ids for prompt in make_prompts(4)]


class Recording(Drafter):
    """Passes everything on to a drafter, and keeps each draft and what was committed before it."""

    def __init__(self, inner):
        self.inner, self.needs = inner, inner.needs
        self.drafts = []  # (row, committed ids, draft tokens, their distributions or None)
        self.after_step = lambda drafter, committed: None

    def start(self, prefill, max_lengths, sampler):
        self.committed = [list(ids) for ids in prefill.host_ids]
        self.inner.start(prefill, max_lengths, sampler)
        self.after_step(self.inner, self.committed)

    def propose(self):
        draft = self.inner.propose()
        for row, tokens in enumerate(draft.tokens.tolist()):
            probs = None if draft.probs is None else draft.probs[row].clone()
            self.drafts.append((row, list(self.committed[row]), tokens, probs))
        return draft

    def observe(self, step):
        for row, ids in enumerate(step.host_ids):
            self.committed[row] += ids
        self.inner.observe(step)
        self.after_step(self.inner, self.committed)


def plain(model):
    """The model with transformers' own attention, for references."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


@torch.inference_mode()
def next_logits(model, ids):
    """Of the token after `ids`, read from the beginning without a cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", DRAFTS)
def test_greedy_ids_equal_vanilla(target, drafts, baseline, name, schedule):
    drafter = sps(drafts[name], target, schedule)
    alone = [decode(target, drafter, [prompt])[0] for prompt in make_prompts(4)]
    assert [turn.output_ids for turn in alone] == baseline
    for turn in alone:
        assert 1 + sum(turn.accept_lengths) == len(turn.output_ids) == LIMIT
        assert all(1 <= n <= 1 + k for n, k in zip(turn.accept_lengths, turn.drafted))
    together = decode(target, drafter, make_prompts(4))
    assert [turn.output_ids for turn in together] == baseline
    assert [t.accept_lengths for t in together] == [t.accept_lengths for t in alone]
    assert [t.drafted for t in together] == [t.drafted for t in alone]


def test_drafts_are_right_and_wrong(target, drafts):
    """The noisy copy covers full, partial and no acceptance; without that the tests say little."""
    turns = [decode(target, sps(drafts["noisy"], target), [p])[0] for p in make_prompts(4)]
    assert {n for turn in turns for n in turn.accept_lengths} >= {1, 2, 3, 5}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_draft_equal_to_target_is_accepted_whole(target, drafts, schedule):
    drafter = sps(drafts["target"], target, schedule)
    for prompt in make_prompts(4):
        turn = decode(target, drafter, [prompt])[0]
        assert turn.accept_lengths == [n + 1 for n in turn.drafted]
        if schedule == "constant":
            assert turn.drafted == [4] * 5 + [3]  # 1 + 5 * 5 + 4 = 30
        if schedule == "heuristic":
            assert turn.drafted == [4, 6, 8, 7]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["noisy", "target"])
def test_sampled_answers_do_not_depend_on_the_batch(target, drafts, name, schedule):
    sampler = Sampler(1.0, top_p=0.95)
    drafter = sps(drafts[name], target, schedule)
    seeds = [seed_of(0, i, 0, 0) for i in range(4)]
    options = {"limit": 20, "sampler": sampler}
    together = decode(target, drafter, make_prompts(4), seeds=seeds, **options)
    for prompt, seed, turn in zip(make_prompts(4), seeds, together):
        alone = decode(target, drafter, [prompt], seeds=[seed], **options)[0]
        assert turn.output_ids == alone.output_ids
        assert turn.accept_lengths == alone.accept_lengths
        assert turn.drafted == alone.drafted
        if name == "target":
            assert turn.accept_lengths == [n + 1 for n in turn.drafted]


def test_rows_that_end_early_do_not_disturb_the_others(target, drafts, baseline):
    eos = frozenset({baseline[0][3], baseline[2][11]})
    drafter = sps(drafts["noisy"], target, "heuristic")
    together = decode(target, drafter, make_prompts(4), stop=StopRules(eos))
    for prompt, turn, full in zip(make_prompts(4), together, baseline):
        first = next((i for i, token in enumerate(full) if token in eos), LIMIT - 1)
        assert turn.output_ids == full[: first + 1]
        alone = decode(target, drafter, [prompt], stop=StopRules(eos))[0]
        assert turn.accept_lengths == alone.accept_lengths
    assert len({len(turn.output_ids) for turn in together}) > 1


@pytest.mark.parametrize("position", range(8))
def test_eos_anywhere_ends_the_answer_once(target, drafts, position):
    """As the first token, in a draft, as its last one, as bonus and as correction."""
    target_draft, noisy = drafts["target"], drafts["noisy"]
    prompt = make_prompts(4)[1]
    full = decode(target, EmptyDrafter(), [prompt])[0].output_ids
    eos = full[position]
    for draft in (target_draft, noisy):
        stop = StopRules(frozenset({eos}))
        turn = decode(target, sps(draft, target, num_draft=3), [prompt], stop=stop)[0]
        assert turn.output_ids == full[: full.index(eos) + 1]
        assert turn.finish_reason == "stop"
        assert len(turn.output_ids) == 1 + sum(turn.accept_lengths)


def test_heuristic_starts_anew_every_turn(target, drafts):
    drafter = sps(drafts["target"], target, "heuristic")
    first = decode(target, drafter, make_prompts(1))[0]
    assert first.drafted[:3] == [4, 6, 8]
    assert decode(target, drafter, make_prompts(1))[0].drafted == first.drafted


def test_host_reads_are_declared(target, drafts):
    draft = drafts["random"]
    assert [sps(draft, target, name).reads_per_step for name in SCHEDULES] == [0, 0, 4]


@pytest.mark.parametrize("limit, most", [(1, 0), (2, 1)])
def test_short_answers_hardly_draft(target, drafts, monkeypatch, limit, most):
    draft = drafts["target"]
    reads = []
    read, prefill = draft.read, draft.prefill
    monkeypatch.setattr(draft, "read", lambda *a, **k: reads.append("read") or read(*a, **k))
    monkeypatch.setattr(draft, "prefill", lambda *a: reads.append("prefill") or prefill(*a))
    turn = decode(target, sps(draft, target), make_prompts(1), limit)[0]
    assert len(turn.output_ids) == limit
    assert reads.count("read") <= most
    assert limit > 1 or not reads
    assert sum(turn.drafted) <= most


def cached(target, row, num):
    """Keys and values of a row's first columns."""
    return torch.cat([storage[:, :, row, :, :num] for storage in target.cache.storage])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["noisy", "target"])
def test_caches_equal_a_fresh_prefill(target, drafts, name, schedule, batch):
    fresh = {"draft": Target(DRAFTS[name]()), "target": Target(make_model())}
    checked = []

    def check(kind, held, row, ids):
        fresh[kind].prefill(torch.tensor([ids]), [len(ids)], 256, Needs())
        expected = cached(fresh[kind], 0, len(ids))
        assert torch.allclose(cached(held, row, len(ids)), expected, atol=1e-4)
        checked.append(kind)

    def after_step(drafter, committed):
        for row, ids in enumerate(committed):
            if drafter.tails.length[row] > 0 and drafter.committed > 0:  # 0: nobody goes on
                assert drafter.tails.length[row] == len(ids) - 2
                check("draft", drafter.draft, row, ids[:-2])
                check("target", target, row, ids[:-1])

    recording = Recording(sps(drafts[name], target, schedule))
    recording.after_step = after_step
    decode(target, recording, make_prompts(batch), limit=16)
    assert checked.count("draft") >= 3 * batch


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("batch", [1, 4])
def test_greedy_proposals_equal_a_slow_reference(target, drafts, schedule, batch):
    recording = Recording(sps(drafts["noisy"], target, schedule))
    turns = decode(target, recording, make_prompts(batch), limit=20)
    model = plain(drafts["noisy"].model)
    compared = 0
    for row, committed, tokens, _ in recording.drafts:
        if len(committed) >= len(make_prompts(batch)[row]) + len(turns[row].output_ids):
            continue  # a finished row's drafts are never used
        sequence, sure = committed, True
        for token in tokens:
            if token < 0:
                break
            assert sure
            logits = next_logits(model, sequence)
            assert token == logits.argmax()
            sure = schedule != "confidence" or logits.softmax(-1)[token] >= 0.3
            sequence = [*sequence, token]
            compared += 1
    assert compared >= sum(sum(turn.drafted) for turn in turns) > 10 * batch


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
def test_static_runtimes_draft_what_eager_does(schedule, batch):
    """There a call collects the chain; a replay overwrites what the last one of its shape gave."""
    prompts, found = make_prompts(batch), []
    for is_static in (False, True):
        target, draft = Target(make_model()), Target(noisy_copy())
        for part in (target, draft) if is_static else ():
            part.runtime = Graphs(part._rows, replaying)
        recording = Recording(sps(draft, target, schedule))
        turns = decode(target, recording, prompts, limit=20)
        lengths = [len(ids) + len(turn.output_ids) for ids, turn in zip(prompts, turns)]
        drafts = [
            (row, ids, [token for token in tokens if token >= 0])
            for row, ids, tokens, _ in recording.drafts
            if len(ids) < lengths[row]  # a finished row's are never used
        ]
        found.append((drafts, [(turn.output_ids, turn.drafted) for turn in turns]))
    assert found[0] == found[1] and len(found[0][0]) > 3 * batch
    assert draft.runtime.graphs and not draft.runtime.broken


def test_sampled_proposals_come_from_the_recorded_distribution(target, drafts):
    recording = Recording(sps(drafts["noisy"], target))
    sampler = Sampler(0.8, top_k=20, top_p=0.9)
    decode(target, recording, make_prompts(2), limit=12, sampler=sampler)
    model = plain(drafts["noisy"].model)
    for _, committed, tokens, probs in recording.drafts:
        for node, token in enumerate(tokens):
            if token < 0:
                break
            expected = sampler.warp(next_logits(model, committed + tokens[:node]))
            assert torch.allclose(probs[node], expected, atol=1e-4)
            assert probs[node][token] > 0


@pytest.mark.parametrize("width", [110, 80])
def test_padded_vocabularies(width):
    """A draft model with more or fewer logits than the target; the tokens used are both's."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[80:] = 0
    target = Target(model)
    recording = Recording(sps(Target(make_model(seed=1, vocab_size=width)), target))
    reference = plain(recording.inner.draft.model)
    for prompt in ([1, 2, 3, 4], [70, 71, 9]):
        base = decode(target, EmptyDrafter(), [prompt], 15)[0]
        assert decode(target, recording, [prompt], 15)[0].output_ids == base.output_ids
        assert max(base.output_ids) < 80
    for _, committed, tokens, _ in recording.drafts:
        for node, token in enumerate(tokens):
            logits = next_logits(reference, committed + tokens[:node])
            assert token == logits[:97].argmax()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_target_tokens_that_the_draft_model_lacks(temperature):
    """A padded row of the target can be drawn; the draft model must survive reading it."""
    target = Target(make_model())
    drafter = sps(Target(make_model(seed=1, vocab_size=50)), target)
    sampler = Sampler(temperature)
    prompt = [1, 2, 3, 4]
    turn = decode(target, drafter, [prompt], sampler=sampler)[0]
    assert max(turn.output_ids) >= 50
    if temperature == 0:
        base = decode(target, EmptyDrafter(), [prompt])[0]
        assert turn.output_ids == base.output_ids


@pytest.mark.parametrize(
    "schedule, num_draft", [("constant", 1), ("constant", 3), ("heuristic", 2), ("confidence", 3)]
)
def test_sampled_answers_have_the_target_distribution(schedule, num_draft):
    """Second and third token jointly, over several steps, against all prefixes enumerated."""
    shape = {"vocab_size": 5, "num_hidden_layers": 1, "hidden_size": 16, "head_dim": 4}
    target = Target(make_model(scale=0.5, **shape))
    draft = Target(make_model(scale=0.5, seed=1, **shape))
    model, sampler = plain(target.model), Sampler(1.3)
    prompt, batch = [1, 4, 2], 1500
    drafter = sps(draft, target, schedule, num_draft)
    counts, lengths = torch.zeros(25), set()
    for part in range(3):
        seeds = [seed_of(part, i, 0, 0) for i in range(batch)]
        turns = decode(target, drafter, [prompt] * batch, 4, sampler=sampler, seeds=seeds)
        for turn in turns:
            counts[5 * turn.output_ids[1] + turn.output_ids[2]] += 1
            lengths.update(turn.accept_lengths)
    assert {1, 2} <= lengths
    exact = torch.zeros(5, 5, dtype=torch.float64)
    first = sampler.warp(next_logits(model, prompt)).double()
    for a in range(5):
        second = sampler.warp(next_logits(model, [*prompt, a])).double()
        for b in range(5):
            third = sampler.warp(next_logits(model, [*prompt, a, b])).double()
            exact[b] += first[a] * second[b] * third
    expected = counts.sum() * exact.flatten()
    assert ((counts - expected) ** 2 / expected).sum() < 51.2  # 24 degrees of freedom, p = 0.001


def test_same_ids_as_transformers_assisted_generation(target, drafts):
    reference, assistant = plain(target.model), plain(drafts["noisy"].model)
    for prompt in make_prompts(2):
        output = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            assistant_model=assistant,
            max_new_tokens=LIMIT,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        turn = decode(target, sps(drafts["noisy"], target, "heuristic"), [prompt])[0]
        assert turn.output_ids == output[0, len(prompt) :].tolist()
