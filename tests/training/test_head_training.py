"""Losses of the trainers of heads on a frozen target against written-out sums."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from conftest import make_model

from model.common.prompts.templates import Row
from model.common.training.features import Features, FrozenTarget
from model.common.training.flags import make_parser
from model.common.training.unroll import Places

SHAPE = {"vocab_size": 23, "num_hidden_layers": 8}


def training(name, *flags, vocab=23, device="cpu", **shape):
    """(HeadTraining of a method, FrozenTarget) on a tiny target of a shape, without data."""
    script = importlib.import_module(f"model.{name}.train")
    required = ["--model-path", "x", "--data", "x", "--output", "x"]
    args = make_parser(name, "", script.add_args, script.RECIPE).parse_args([*required, *flags])
    target = FrozenTarget(make_model(**{**SHAPE, "vocab_size": vocab, **shape}).to(device))
    torch.manual_seed(1)
    counts = torch.arange(vocab).flip(0)
    data = SimpleNamespace(count_answers=lambda size: counts)
    (kind,) = [v for k, v in vars(script).items() if k.endswith("Training") and k != "HeadTraining"]
    return kind(args, target, data), target


def batch_of(method, target, num=3, lengths=(9, 14, 12)):
    """Rows of random ids whose answers are ragged stretches."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in lengths[:num]:
        ids = torch.randint(0, 23, (length,), generator=generator, dtype=torch.int32)
        rows.append(Row(ids, torch.arange(length) >= length // 2))
    return Features(target, tuple(method.needs), None, {}).batch(rows)


def cross_entropy(goal_logits, logits):
    return -(goal_logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def forward(method, batch, b, i):
    """The rows up to i of sequence b by the module's forward, as at inference, [1 + i, H]."""
    features = batch.hidden["last"][b : b + 1, : i + 1]
    inputs = batch.ids[b : b + 1, 1 : i + 2], features
    rotary, mask = method.rows.rotary(features), method.rows.mask(features)
    return method.module(inputs, rotary, mask, None)[0]


@pytest.mark.parametrize("cls_weight", [0.0, 0.1, 2.0])
def test_eagle_loss(cls_weight):
    """Row i: feature i and token i + 1 in; feature i + 1 and what the target says after it out."""
    method, target = training("eagle", "--cls-weight", str(cls_weight))
    method.module.eval()  # no noise
    batch = batch_of(method, target)
    features, terms = batch.hidden["last"], []
    for b in range(3):
        for i in range(int(batch.lengths[b]) - 2):
            if not batch.mask[b, i + 2]:
                continue
            guess, truth = forward(method, batch, b, i)[-1], features[b, i + 1]
            difference = (guess - truth).abs()
            smooth = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
            entropy = cross_entropy(target.lm_head(truth), target.lm_head(guess))
            terms.append((smooth, entropy))
    regression, entropy = (torch.stack(values).mean() for values in zip(*terms))
    loss, metrics = method.loss(batch)
    assert torch.allclose(loss, regression + cls_weight * entropy, atol=1e-5)
    assert torch.allclose(metrics["regression"], regression, atol=1e-5)
    assert torch.allclose(metrics["cross_entropy"], entropy, atol=1e-5)


def test_eagle_oracle_and_noise():
    """The true next features have no regression loss and the target's own entropy."""
    method, target = training("eagle")
    batch = batch_of(method, target)

    def states(batch, features, places):
        yield places.of(batch.hidden["last"].roll(-1, 1))

    method.states = states
    _, metrics = method.loss(batch)
    assert metrics["regression"] == 0 and metrics["top_1"] == 1
    rows = batch.labelled(2).roll(1, 1)
    scores = batch.logits(rows)
    assert torch.allclose(metrics["cross_entropy"], cross_entropy(scores, scores).mean())
    noise = method.noisy(torch.zeros(2, 256, 64))
    assert 0.19 < noise.abs().max() <= 0.2  # 0.1 at 512 tokens, twice that at 256
    method.module.eval()
    assert not method.noisy(torch.zeros(2, 256, 64)).any()


def slow_unroll(method, target, ids, states, steps):
    """Outputs [steps][T, H]: each row alone, attention written out over the keys that it sees."""
    layer, module = method.module.midlayer, method.module
    attention, length = layer.self_attn, len(ids)
    groups = attention.q_proj.out_features // attention.k_proj.out_features
    rows, seen, outputs = module.fuse(states[None]), [], []
    for step in range(steps):
        following = torch.tensor([ids[(r + 1 + step) % length] for r in range(length)])
        both, _ = layer.inputs(module.embed(following[None]), rows)
        query, key, value = attention.project(both, method.rows.rotary(rows, step))
        seen.append((key[0], value[0]))
        attended = torch.zeros(length, attention.q_proj.out_features)
        for r in range(length):
            places = [(0, j) for j in range(r + 1)] + [(s, r) for s in range(1, step + 1)]
            parts = []
            for head in range(query.shape[1]):
                keys = torch.stack([seen[s][0][head // groups, j] for s, j in places])
                values = torch.stack([seen[s][1][head // groups, j] for s, j in places])
                weights = (keys @ query[0, head, r] * attention.scaling).softmax(0)
                parts.append(weights @ values)
            attended[r] = torch.cat(parts)
        rows = layer.finish(rows, attention.o_proj(attended)[None])
        outputs.append(rows[0])
    return outputs


@pytest.mark.parametrize("draft_vocab", [None, 11])
def test_eagle3_loss(draft_vocab):
    flags = ["--unroll", "3", "--step-decay", "0.5"]
    flags += ["--draft-vocab-size", str(draft_vocab)] if draft_vocab else []
    method, target = training("eagle3", *flags)
    batch, module = batch_of(method, target), method.module
    states = torch.cat([batch.hidden[layer] for layer in (2, 4, 5)], -1)
    kept = torch.arange(draft_vocab or 23)  # the most frequent ids are the small ones
    assert torch.equal(method.ids, kept)
    terms = [[], [], []]
    for b in range(3):
        length = int(batch.lengths[b])
        ids = batch.ids[b, :length].tolist()
        for step, outputs in enumerate(slow_unroll(method, target, ids, states[b, :length], 3)):
            for r in range(length - 2 - step):
                says = target.lm_head(batch.hidden["last"][b, r + 1 + step])
                if batch.mask[b, r + 2 + step] and says.argmax() in kept:
                    logits = module.lm_head(module.norm(outputs[r]))
                    terms[step].append(cross_entropy(says[kept], logits))
    steps = [torch.stack(values).mean() for values in terms]
    loss, metrics = method.loss(batch)
    for step, value in enumerate(steps):
        assert torch.allclose(metrics[f"loss_{step + 1}"], value, atol=1e-5)
    assert torch.allclose(loss, steps[0] + 0.5 * steps[1] + 0.25 * steps[2], atol=1e-5)


def test_eagle3_first_step_is_the_forward_of_inference():
    method, target = training("eagle3")
    batch, module = batch_of(method, target, 1), method.module
    states = torch.cat([batch.hidden[layer] for layer in method.layers], -1)
    rows = module.fuse(states)
    rotary, mask = method.rows.rotary(rows), method.rows.mask(rows)
    expected = module((batch.ids.roll(-1, 1), states), rotary, mask, None)
    places = Places(batch.labelled(2))
    found = next(method.states(batch, places, 1))
    assert torch.allclose(found, places.of(expected), atol=1e-5)


@pytest.mark.parametrize("arch", ["mlp", "prefix-mlp"])
def test_hydra_loss(arch):
    flags = ["--arch", arch, "--num-heads", "3", "--num-layers", "2", "--lm-weight", "0.3"]
    method, target = training("hydra", *flags)
    method.module.eval()
    batch = batch_of(method, target)
    features, total = batch.hidden["last"], 0.0
    states = method.module.states(features)
    for i in range(3):
        teacher, own = [], []
        for b in range(3):
            for t in range(int(batch.lengths[b]) - 2 - i):
                if batch.mask[b, t + 2 + i]:
                    says = target.lm_head(features[b, t + 1 + i])
                    read = target.embedding(batch.ids[b, t + 1 : t + 2 + i]).flatten()
                    logits = method.module.guess(i, torch.cat([states[b, t], read]))
                    teacher.append(cross_entropy(says, logits))
                    own.append(-logits.log_softmax(-1)[batch.ids[b, t + 2 + i]])
        total = total + torch.stack(teacher).mean() + 0.3 * torch.stack(own).mean()
    loss, _ = method.loss(batch)
    assert torch.allclose(loss, total, atol=1e-4)


def test_medusa_loss():
    """Head k learns the token at t + 2 + k, where it is an answer's."""
    method, target = training("medusa", "--num-heads", "3", "--head-decay", "0.8")
    batch, total = batch_of(method, target), 0.0
    logits = method.module(batch.hidden["last"]).log_softmax(-1)
    loss, metrics = method.loss(batch)
    for k in range(3):
        terms = [
            -logits[k, b, t, batch.ids[b, t + 2 + k]]
            for b in range(3)
            for t in range(int(batch.lengths[b]) - 2 - k)
            if batch.mask[b, t + 2 + k]
        ]
        torch.testing.assert_close(metrics[f"loss_{k + 1}"], torch.stack(terms).mean().detach())
        total += 0.8**k * torch.stack(terms).mean()
    torch.testing.assert_close(loss, total)
