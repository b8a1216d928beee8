"""DSpark's parts by the numbers of a block of three, four tokens and a transition of rank 2."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from model.common.contract.drafter import Draft
from model.common.loop.verify import rejection
from model.dflash.blocks import Blocks
from model.dspark.head import ConfidenceHead, Markov, MarkovHead
from model.dspark.scheduler import read_rates, schedule

W1 = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]])
W2 = torch.tensor([[2.0, 0], [0, 2], [-1, 1], [1, -1]])
U = torch.tensor([[1, 0.5, 0, -1], [0, 1, 0.5, 0], [0.2, 0, 0.4, 0.1]])
P = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
STATES = torch.tensor([[1.0, 0], [0.5, 0.5], [0, 1]])
ANCHOR, FORCED = 2, [2, 0, 1]  # the tokens before, where the labels are 0, 1, 3


def head_of(kind="vanilla"):
    """The Markov head of W1 and W2."""
    head = MarkovHead(Markov(2, kind), 2, 4, 4)
    head.markov_w1.weight.data.copy_(W1)
    head.markov_w2.weight.data.copy_(W2)
    return head.requires_grad_(False)


def walk(head, greedy_from=ANCHOR):
    """(tokens, corrected logits) of the greedy walk."""
    before, memory, tokens, rows = torch.tensor(greedy_from), None, [], []
    for base, state in zip(U, STATES):
        bias, memory = head(before, state, memory)
        rows.append(base + bias)
        before = rows[-1].argmax()
        tokens.append(int(before))
    return tokens, torch.stack(rows)


def test_the_greedy_walk():
    tokens, rows = walk(head_of())
    assert tokens == [0, 0, 0] and U.argmax(-1).tolist() == [0, 1, 2]
    wanted = [[3, 2.5, 0, -1], [2, 1, -0.5, 1], [2.2, 0, -0.6, 1.1]]
    assert torch.allclose(rows, torch.tensor(wanted))
    laws = rows.softmax(-1)
    first = torch.tensor([0.597146, 0.362187, 0.029730, 0.010937])
    assert torch.allclose(laws[0], first, atol=1e-6)
    second = torch.tensor([0.550102, 0.202371, 0.045155, 0.202371])
    assert torch.allclose(laws[1], second, atol=1e-6)


def test_gated_and_rnn_heads_by_hand():
    torch.manual_seed(0)
    gated, rnn = head_of("gated"), head_of("rnn")
    before, state = torch.tensor(2), STATES[1]
    gate = torch.sigmoid(gated.gate_proj.weight @ torch.cat([state, W1[2]]) + gated.gate_proj.bias)
    assert torch.allclose(gated(before, state, None)[0], W2 @ (gate * W1[2]))
    memory = torch.zeros(2)
    carried = None
    for token, state in zip([2, 0, 3], STATES):
        bias, carried = rnn(torch.tensor(token), state, carried)
        joint = rnn.joint_proj.weight @ torch.cat([memory, W1[token], state]) + rnn.joint_proj.bias
        gate, new, out = joint[:2].sigmoid(), joint[2:4].tanh(), joint[4:].tanh()
        assert torch.allclose(bias, W2 @ out, atol=1e-6)  # of the memory before this slot
        memory = gate * memory + (1 - gate) * new
        assert torch.allclose(carried, memory, atol=1e-6)
    many = rnn(torch.tensor([[2, 0], [3, 3]]), torch.randn(2, 2, 2), None)  # any leading sizes
    assert many[0].shape == (2, 2, 4) and many[1].shape == (2, 2, 2)


def confidences():
    """Logits of confidence, teacher-forced."""
    head = ConfidenceHead(4)
    head.proj.weight.data.copy_(torch.tensor([[0.4, -0.2, 0.6, 0.3]]))
    head.proj.bias.data.fill_(-0.1)
    return head(torch.cat([STATES, W1[FORCED]], -1)).detach()


def test_confidence_and_lengths():
    logits = confidences()
    assert torch.allclose(logits, torch.tensor([1.2, 0.6, 0]), atol=1e-6)
    sure = logits.sigmoid()
    assert sure.tolist() == pytest.approx([0.768525, 0.645656, 0.5], abs=1e-6)
    found = {limit: int((sure >= limit).cumprod(0).sum()) for limit in (0, 0.6, 0.65, 0.7, 0.8)}
    assert found == {0: 3, 0.6: 2, 0.65: 1, 0.7: 1, 0.8: 0}


@pytest.mark.parametrize("learned, whole", [(True, 1.447638), (False, 0.797637)])
def test_the_loss(learned, whole):
    """The trainer's own, on a batch of one anchor, with and without a confidence to be learned."""
    from model.dspark.train import DSparkTraining

    method = DSparkTraining.__new__(DSparkTraining)
    markov = Markov(2, "vanilla", learned, learned)
    design = SimpleNamespace(num_drafts=3, block_size=3)
    head = head_of()

    def corrected(logits, before, states, memory):
        bias, memory = head(before, states, memory)
        return logits + bias, memory

    method.module = SimpleNamespace(
        design=design,
        markov=markov,
        corrected=corrected,
        confidence=lambda before, states: confidences().view(1, 1, 3),
    )
    weights = {"ce_weight": 0.1, "l1_weight": 0.9, "confidence_weight": 1.0}
    method.args = SimpleNamespace(anchors=1, slot_decay=4.0, **weights)
    labels, counted = torch.tensor([[[0, 1, 3]]]), torch.ones(1, 1, 3, dtype=torch.bool)
    before = torch.tensor([[[ANCHOR, 0, 1]]])
    blocks = Blocks(STATES.view(1, 1, 3, 2), before, labels, counted, None)
    method.over_blocks = lambda batch: method.sums(blocks)
    method.logits = lambda states: U.view(1, 1, 3, 4)
    method.target = SimpleNamespace(logits=lambda states: P.log())
    loss, metrics = method.loss(None)
    assert loss.item() == pytest.approx(whole, abs=1e-5)
    assert metrics["cross_entropy"].item() == pytest.approx(1.620238, abs=1e-5)
    assert metrics["distance"].item() == pytest.approx(0.706236, abs=1e-5)
    if learned:
        assert metrics["confidence"].item() == pytest.approx(0.650002, abs=1e-5)
    found = [metrics[f"accepted_{slot}"].item() for slot in (1, 2, 3)]
    assert found == pytest.approx([0.737813, 0.547526, 0.624537], abs=1e-5)


# --- the scheduler ---


def test_the_scheduler_by_hand():
    rates = [1, 1, 0.95, 0.9, 0.85, 0.78, 0.7, 0.6]
    found = schedule([[0.9, 0.8, 0.3], [0.5, 0.4, 0.2]], rates)
    assert found[0] == [2, 1] and found[1] == pytest.approx(3.502)
    assert schedule([[0.9, 0.8]], [1.0]) == ([0], 1.0)  # no rate of two rows
    assert schedule([[0.9, 0.8]], [1.0, 1.0, 1.0])[0] == [2]
    assert read_rates("1,.9") == [1.0, 0.9]


def test_the_scheduler_stops_at_the_first_that_does_not_pay():
    """A search of all stops would look at the token itself: after A two tokens, after B none."""
    rates = [1, 0.5, 0.45]
    for second in (0.9, 0.0):
        assert schedule([[0.8, second]], rates)[0] == [0]
    assert (1 + 0.8 + 0.72) * 0.45 > 1  # what the best of all stops would be


# --- the law of what is emitted ---


def cut_lengths(kind, sure, threshold):
    """Verified tokens of a draft whose confidences are `sure`."""
    if kind == "threshold":
        return int((torch.tensor(sure) >= threshold).cumprod(0).sum())
    return schedule([list(sure)], [1.0, threshold, threshold])[0][0]


def law_of_two(kind, threshold, proposal="corrected"):
    """Law [3, 3] of the next two tokens with random U, W1, W2 and a confidence of the token before,
    by enumeration: of all drafts, and of uniforms on a fine grid; p's law of a chain."""
    generator = torch.Generator().manual_seed(5)
    base, first, second = (torch.randn(2, 3, generator=generator).double() for _ in range(3))
    bias = first.T @ second  # [before, token]
    target = torch.rand(4, 3, generator=generator).double()  # after: root, then each token
    target = target / target.sum(-1, keepdim=True)
    sure = torch.rand(4, generator=generator).double()  # of the root, then of each token
    law = torch.zeros(3, 3).double()
    q1 = (base[0] + bias[0]).softmax(-1)
    for one in range(3):
        q2 = (base[1] + bias[one]).softmax(-1)
        given = torch.stack([q1, q2])
        if proposal == "base":
            given = base.softmax(-1)
        length = cut_lengths(kind, [float(sure[0]), float(sure[1 + one])], threshold)
        for two in range(3):
            chance = q1[one] * q2[two]
            tokens = [one, two][:length]
            law += chance * emitted(tokens, given, target)
    wanted = target[0].unsqueeze(1) * target[1:]
    return law, wanted


def emitted(tokens, given, target):
    """Law [3, 3] of the first two tokens of a step on a draft, then plain decoding."""
    law, reached, before = torch.zeros(3, 3).double(), 1.0, 0
    line = []
    for place, token in enumerate(tokens):
        p, q = target[before], given[place]
        accept = min(1.0, float(p[token] / q[token]))
        rest = (p - q).clamp(min=0)
        rest = rest / rest.sum() if rest.sum() > 0 else p
        for other in range(3):
            spread(law, [*line, other], reached * (1 - accept) * float(rest[other]), target)
        reached, before, line = reached * accept, 1 + token, [*line, token]
    if len(line) < 2:
        for other in range(3):
            spread(law, [*line, other], reached * float(target[before][other]), target)
    else:
        law[line[0], line[1]] += reached
    return law


def spread(law, line, chance, target):
    """Add the chance of a line of one or two tokens; the second is the target's where it lacks."""
    if len(line) == 1:
        law[line[0]] += chance * target[1 + line[0]]
    else:
        law[line[0], line[1]] += chance


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_any_threshold_keeps_the_law(threshold):
    law, wanted = law_of_two("threshold", threshold)
    assert torch.allclose(law, wanted, atol=1e-12)


@pytest.mark.parametrize("rate", [0.9, 0.6, 0.5])
def test_the_scheduler_keeps_the_law(rate):
    law, wanted = law_of_two("rates", rate)
    assert torch.allclose(law, wanted, atol=1e-12)


def test_uncorrected_laws_would_not():
    law, wanted = law_of_two("threshold", 0.0, "base")
    assert (law - wanted).abs().sum() > 0.01


def test_our_rule_does_what_was_enumerated():
    """rejection() on cut drafts of two: shares over a grid of uniforms, as emitted() says."""
    generator = torch.Generator().manual_seed(1)
    given = torch.rand(2, 3, generator=generator).double()
    given = given / given.sum(-1, keepdim=True)
    target = torch.rand(4, 3, generator=generator).double()
    target = target / target.sum(-1, keepdim=True)
    grid = (torch.arange(150).double() + 0.5) / 150
    uniforms = torch.tensor(list(itertools.product(grid, grid))).double()
    uniforms = torch.cat([uniforms, torch.full((len(uniforms), 1), 0.5).double()], 1)
    num = len(uniforms)
    for tokens in ([0, 2], [1, -1], [-1, -1]):
        rows = [0, *(1 + max(token, 0) for token in tokens)]
        logits = target[rows].log().expand(num, 3, 3)
        draft = Draft(torch.tensor(tokens).expand(num, 2), probs=given.expand(num, 2, 3))
        found = rejection(logits, draft, lambda scores: scores.softmax(-1), uniforms)
        law = torch.zeros(3, 3).double()
        for line in found.tokens.tolist():
            spread(law, [token for token in line if token >= 0][:2], 1 / num, target)
        wanted = emitted([token for token in tokens if token >= 0], given, target)
        assert torch.allclose(law, wanted, atol=0.02), tokens
