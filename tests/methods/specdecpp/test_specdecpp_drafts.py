"""SpecDec++: the stop rule against its definition, host reads, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_model, make_prompts
from draft_models import DRAFTS, ScriptedModel, next_logits, plain
from harness_runs import refused
from host_reads import count_reads
from laws import LEVEL
from oracle import decode
from recording import Recording
from specdecpp_dirs import make_head, specdecpp_dir
from steps import chain_step, prompt_step
from tiny_laws import COOL, answer_law, fits, sampled, tiny
from tiny_methods import build as build_method

from model.common.contract.sequence import EmptyDrafter
from model.common.loop.sampling import Sampler
from model.common.target.loading import load_target
from model.common.target.model import Target
from model.specdecpp.drafter import SpecDecPPDrafter
from model.sps.drafter import SpSDrafter

FIRST = 10  # candidate s of a scripted draft is the token FIRST + s
CONSTANT = ["--schedule", "constant"]
FAKE = SimpleNamespace(vocab_size=97, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def target():
    return Target(make_model())


@pytest.fixture(scope="module")
def drafts():
    return {name: Target(make()) for name, make in DRAFTS.items()}


def ada(draft, target, head=None, threshold=0.6, bounds=(1, 8), eos_ids=()):
    head = head or make_head(draft.config.hidden_size).accepted
    return SpecDecPPDrafter(draft, target, head, threshold, bounds, eos_ids)


def count_on(tokens):
    """A draft model that answers token t with t + 1 and whose state is the token it read."""
    logits = torch.nn.functional.one_hot(tokens + 1, 97).float() * 50
    return logits, tokens.unsqueeze(-1).float()


def started(chances, threshold, bounds, eos_ids=(), room=1000):
    """A drafter for which candidate s of slot b is accepted with chances[b][s - 1].

    The head knows a candidate by the state that has read it, and never sees the root's.
    """
    batch = len(chances)

    def head(states):
        assert (states != FIRST).all()
        place = (states[:, 0].long() - FIRST - 1).clamp(min=0)  # an idle slot reads small ids
        return torch.tensor([row[min(i, len(row) - 1)] for row, i in zip(chances, place.tolist())])

    drafter = SpecDecPPDrafter(ScriptedModel(count_on), FAKE, head, threshold, bounds, eos_ids)
    drafter.reserve(batch, 2000, Sampler())
    drafter.start(prompt_step([[1, 2, 3, FIRST]] * batch, [3 + room] * batch))
    return drafter


def scripted(chances, threshold, bounds, *eos_ids, **more):
    """Draft lengths of the slots of one proposal."""
    drafter = started(chances, threshold, bounds, *eos_ids, **more)
    rows = drafter.propose().tokens.tolist()
    for row in rows:
        kept = [token for token in row if token >= 0]
        assert kept == list(range(FIRST + 1, FIRST + 1 + len(kept)))
        assert row[len(kept) :] == [-1] * (len(row) - len(kept))
    lengths = [sum(token >= 0 for token in row) for row in rows]
    # nothing is read in vain, but where EOS ends all drafts before their least length
    least = min(bounds[0], max(drafter.lengths))
    assert len(rows[0]) == max(*lengths, least) == drafter.draft.model.reads
    return lengths


@pytest.mark.parametrize(
    "chances, threshold, bounds, length",
    [
        ([0.9, 0.8, 0.5, 0.9], 0.3, (2, 20), 4),
        ([0.2], 0.3, (2, 20), 2),
        ([0.999], 0.3, (2, 20), 20),
        ([0.2], 0.3, (1, 20), 2),
        ([1.0], 0.0, (2, 20), 20),
        ([0.0], 0.9, (2, 20), 2),
        ([0.0], 0.9, (1, 20), 2),
        ([0.0], 0.9, (5, 20), 5),
        ([0.0], 1.0, (2, 20), 20),
        ([0.99], 0.0, (2, 20), 2),
        ([0.99], 0.0, (3, 20), 3),
        ([0.1], 0.5, (1, 1), 1),
        ([0.1], 0.5, (7, 7), 7),
        ([0.9], 0.7, (2, 20), 13),  # 0.9 ** 12 is the first below 0.3
    ],
)
def test_stop_lengths(chances, threshold, bounds, length):
    assert scripted([chances], threshold, bounds) == [length]


def test_every_slot_stops_for_itself():
    chances = [[0.9, 0.8, 0.5], [0.2], [0.999], [0.75, 0.5]]
    alone = [scripted([row], 0.3, (2, 9))[0] for row in chances]
    assert scripted(chances, 0.3, (2, 9)) == alone == [4, 2, 9, 3]


def test_a_draft_ends_with_eos_and_within_its_room():
    eos = (FIRST + 3,)
    assert scripted([[1.0]], 0.3, (2, 20), eos) == [3]
    assert scripted([[1.0]], 0.3, (5, 20), eos) == [3]
    assert scripted([[1.0]], 0.3, (2, 20), (FIRST + 1,)) == [1]
    assert scripted([[1.0]], 0.3, (2, 20), room=6) == [4]


def test_host_reads_are_declared_and_kept(target, drafts, monkeypatch):
    drafter = ada(drafts["noisy"], target, threshold=1.0, bounds=(1, 6))
    counts = count_reads(monkeypatch, drafter)
    decode(target, drafter, make_prompts(2), 20)
    assert max(counts) == drafter.reads_per_step == 5
    drafter = ada(drafts["noisy"], target, threshold=1.0, bounds=(3, 6), eos_ids=range(97))
    counts = count_reads(monkeypatch, drafter)  # every draft ends with its first token
    turns = decode(target, drafter, make_prompts(2), 20)
    assert max(counts) == 1 and drafter.reads_per_step == 3
    assert {1} <= {n for turn in turns for n in turn.drafted} <= {0, 1}


def test_an_idle_slot_is_not_waited_for():
    drafter = started([[1.0], [0.2]], 0.3, (2, 20))
    assert drafter.propose().tokens.shape == (2, 20)
    drafter.observe(chain_step([[FIRST], [FIRST]]))
    drafter.end([0])
    draft = drafter.propose()
    assert draft.tokens.shape == (2, 2)
    assert (draft.tokens[0] < 0).all() and (draft.tokens[1] >= 0).all()


@pytest.mark.compiled
def test_a_compiled_draft_model_tells_its_states(target):
    """Of a model whose first forward with states would else be a compiled one."""
    draft, prompts = Target(DRAFTS["random"](), "compile"), make_prompts(1)
    (expected,) = decode(target, EmptyDrafter(), prompts, 8)
    (turn,) = decode(target, ada(draft, target), prompts, 8)
    assert turn.output_ids == expected.output_ids


@torch.inference_mode()
def slow_length(model, head, committed, tokens, threshold, bounds):
    """How long a draft has to be, each score from a whole forward without a cache."""
    survival, length = 1.0, 0
    while length < bounds[1]:
        length += 1
        if length > 1:
            ids = torch.tensor([[*committed, *tokens[: length - 1]]])
            out = model(ids, output_hidden_states=True, use_cache=False)
            survival *= head.accepted(out.hidden_states[-1][0, -1]).item()
        if length >= bounds[0] and 1 - survival > threshold:
            break
    return length


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("bounds", [(1, 6), (3, 9)])
def test_lengths_and_tokens_equal_a_slow_reference(target, drafts, bounds, slots, temperature):
    """Of every slot, refilled or not; a draft's room may be less than what the head wants."""
    head = make_head(tied=False, seed=2, scale=0.25)
    recording = Recording(ada(drafts["noisy"], target, head.accepted, 0.6, bounds))
    prompts, sampler = make_prompts(4), Sampler(temperature)
    turns = decode(target, recording, prompts, 24, sampler, num_slots=slots)
    model, lengths = plain(drafts["noisy"].model), set()
    ends = {tuple(ids): len(ids) + 24 for ids in prompts}
    for one in recording.drafts:
        end = next(end for ids, end in ends.items() if tuple(one.ids[: len(ids)]) == ids)
        tokens = [token for token in one.tokens if token >= 0]
        room = end - 1 - len(one.ids)
        wanted = slow_length(model, head, one.ids, tokens, 0.6, (bounds[0], min(bounds[1], room)))
        assert len(tokens) == wanted
        lengths.add(wanted)
        for node, token in enumerate(tokens):
            logits = next_logits(model, one.ids + tokens[:node])
            if temperature == 0:
                assert token == logits.argmax()
            else:
                assert torch.allclose(one.probs[node], sampler.warp(logits), atol=1e-4)
                assert one.probs[node][token] > 0
    assert len(lengths) > 3 and sum(map(len, (turn.output_ids for turn in turns))) == 4 * 24


def steep(states):
    """A head that is certain of everything, and right by chance only."""
    return (states[:, 0] > 0).float()


def test_any_head_keeps_the_law():
    target, draft = tiny(0, 2), tiny(1, 1)
    drafter = SpecDecPPDrafter(draft, target, steep, 0.45, (2, 4))
    answers, mean = sampled(target, drafter, COOL, batches=6)
    assert 1.2 < mean < 3
    assert min(fits(answers, answer_law(plain(target.model), 5, COOL))) > LEVEL


# --- the command ---


def test_schedules(model_dir, draft_dir):
    target = load_target(model_dir, "float32", "cpu", "eager")

    def build(*flags):
        return build_method("specdecpp", model_dir, target, ["--drafter-path", draft_dir, *flags])

    head = ["--head-path", specdecpp_dir(draft_dir)]
    drafter = build(*head, "--threshold", "0.4", "--bound", "3", "9")
    assert type(drafter) is SpecDecPPDrafter
    assert (drafter.threshold, drafter.fewest, drafter.num_draft) == (0.4, 3, 9)
    usual = build(*head)
    assert (usual.threshold, usual.fewest, usual.num_draft) == (0.7, 2, 20)
    assert drafter.eos_ids.tolist() == [1]
    for name in ("constant", "heuristic"):
        other = build("--schedule", name, "--num-draft", "7")
        assert type(other) is SpSDrafter
        assert (other.schedule, other.num_draft) == (name, 7)
        assert build("--schedule", name).num_draft == 5
    none = build_method("specdecpp", model_dir, target, ["--schedule", "none"])
    assert type(none) is EmptyDrafter


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "--head-path is needed: no weights are known for"),
        (["--head-path", "./none"], "none: no such model directory"),
        (["--head-path", "HEAD", "--bound", 9, 3], "--bound 9 3: the first is above the second"),
        (["--head-path", "HEAD", "--bound", 0, 3], "--bound"),
        (["--head-path", "HEAD", "--threshold", 1.5], "--threshold"),
        (["--head-path", "HEAD", "--num-draft", 7], "--num-draft says nothing to --schedule ada"),
        ([*CONSTANT, "--threshold", 0.5], "--threshold says nothing to --schedule constant"),
        ([*CONSTANT, "--head-path", "HEAD"], "--head-path says nothing to --schedule constant"),
        (["--schedule", "heuristic", "--bound", 2, 3], "--bound says nothing to --schedule heur"),
        (["--schedule", "none"], "--drafter-path says nothing to --schedule none"),
    ],
)
def test_refusals(paths, capfd, flags, words):
    flags = [specdecpp_dir(paths["draft"]) if flag == "HEAD" else flag for flag in flags]
    line = refused(capfd, paths, "--drafter-path", paths["draft"], *flags, method="specdecpp")
    assert words in line
