"""Heads unrolled over their own outputs: places, chains, the accept length that they promise."""

import json
import random
from pathlib import Path

import pytest
import torch
from test_head_training import batch_of, training

from model.common.training.unroll import Places, accepted, soft_cross_entropy

ROOT = Path(__file__).resolve().parents[2]


def test_places_and_back():
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    places = Places(mask)
    assert places.index.tolist() == [[1, 3, 4], [3, 0, 0], [0, 0, 0]]
    assert places.valid.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    rows = torch.arange(15).view(3, 5)
    assert places.of(rows)[places.valid].tolist() == [1, 3, 4, 8]
    assert places.spread(places.of(rows), -1).tolist() == rows.masked_fill(~mask, -1).tolist()
    assert places.tokens(rows, 0)[places.valid].tolist() == [2, 4, 4, 9]  # the last has no next


def walk(drafts, ids, mask):
    """(tokens, steps) of decoding, a token at a time."""
    tokens = steps = 0
    for b in range(len(ids)):
        t = 0
        while t < len(ids[b]):
            if not mask[b][t]:
                t += 1
                continue
            while t + 1 < len(ids[b]) and mask[b][t + 1]:
                steps, chain, k = steps + 1, drafts[b][t - 1], 0
                inside = t + 1 + k < len(ids[b]) and mask[b][t + 1 + k]
                while inside and k < len(chain) and chain[k] == ids[b][t + 1 + k]:
                    k += 1
                    inside = t + 1 + k < len(ids[b]) and mask[b][t + 1 + k]
                more = k + 1 if inside else k  # the target's own token, where one is left
                t, tokens = t + more, tokens + more
            t += 1
    return tokens, steps


def test_accepted_is_a_walk_over_the_answers():
    chance = random.Random(4)
    for _ in range(50):
        length, depth = chance.randint(4, 20), chance.randint(1, 4)
        ids = [[chance.randint(0, 1) for _ in range(length)] for _ in range(2)]
        mask = [[False] + [chance.random() < 0.8 for _ in range(length - 1)] for _ in range(2)]
        drafts = [[[chance.randint(0, 1) for _ in range(depth)] for _ in ids[0]] for _ in ids]
        found = accepted(torch.tensor(drafts), torch.tensor(ids), torch.tensor(mask))
        assert found == walk(drafts, ids, mask)


def test_perfect_and_useless_chains():
    ids, mask = torch.arange(30, 51).unsqueeze(0), torch.arange(21).unsqueeze(0) >= 4
    perfect = torch.stack([ids.roll(-2 - step, 1) for step in range(3)], -1)
    assert accepted(perfect, ids, mask) == (16, 4)  # an answer of 17, its first the prefill's
    assert accepted(perfect * 0, ids, mask) == (16, 16)


def test_soft_cross_entropy_is_the_written_out_sum():
    goal, logits = torch.randn(5, 9).softmax(-1), torch.randn(5, 9)
    written = -(goal * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(soft_cross_entropy(goal, logits), written)


def slow_chain(method, batch, b, r, depth):
    """Greedy tokens of EAGLE's module for r + 2, ...: its forward over one more row each time."""
    features = batch.hidden["last"][b : b + 1, : r + 1]
    tokens, found = batch.ids[b : b + 1, 1 : r + 2], []
    for step in range(depth):
        rotary, mask = method.rows.rotary(features), method.rows.mask(features)
        out = method.module((tokens, features), rotary, mask, None)[:, -1:]
        found.append(int(method.target.lm_head(out).argmax()))
        place = min(r + 2 + step, batch.ids.shape[1] - 1)
        tokens = torch.cat([tokens, batch.ids[b : b + 1, place : place + 1]], 1)
        features = torch.cat([features, out], 1)
    return found


def test_eagles_chains_are_those_of_its_forward():
    method, target = training("eagle")
    method.module.eval()
    batch = batch_of(method, target)
    with torch.no_grad():
        drafts = method.drafts(batch, 3)
        for b, r in batch.labelled(2).nonzero().tolist():
            assert drafts[b, r].tolist() == slow_chain(method, batch, b, r, 3)
    assert (drafts[~batch.labelled(2)] == -1).all()


def test_a_loss_over_some_ids_knows_no_others():
    """EAGLE with --loss-vocab-size: over those ids, without rows whose best is none of them."""
    method, target = training("eagle", "--loss-vocab-size", "5")
    method.module.eval()
    batch, terms, kept = batch_of(method, target), [], torch.arange(5)
    assert torch.equal(method.vocabulary.ids, kept)  # the most frequent ids are the small ones
    places = Places(batch.labelled(2))
    guessed = next(method.states(batch, batch.hidden["last"], places))
    for b, q in places.valid.nonzero().tolist():
        i = int(places.index[b, q])
        says = target.lm_head(batch.hidden["last"][b, i + 1])
        if says.argmax() in kept:
            logits = target.lm_head(guessed[b, q])[kept]
            terms.append(-(says[kept].softmax(-1) * logits.log_softmax(-1)).sum())
    _, metrics = method.loss(batch)
    assert 0 < len(terms) < int(places.valid.sum())
    torch.testing.assert_close(metrics["cross_entropy"], torch.stack(terms).mean().detach())


@pytest.mark.slow
def test_the_accept_length_is_that_of_decoding(tmp_path):
    """EAGLE-3's mini head: chains simulated over recorded answers, and chains decoded."""
    from types import SimpleNamespace

    from harness_runs import answer
    from safetensors.torch import load_file

    from model.common.prompts.prompter import Prompter, load_tokenizer
    from model.common.prompts.templates import Row
    from model.common.target.loading import load_model
    from model.common.training.features import Features, FrozenTarget
    from model.common.training.flags import make_parser
    from model.eagle3 import train as script

    mini = ROOT / "data" / "mini_models"
    questions = ROOT / "data" / "mini_bench" / "question.jsonl"
    flags = ["--eagle-path", mini / "eagle3", "--total-token", 6, "--depth", 4]
    flags += ["--draft-top-k", 1, "--limit-per-category", 1, "--categories", "qa,writing"]
    records = answer("eagle3", mini / "target", questions, tmp_path / "a.jsonl", *flags)
    required = ["--model-path", str(mini / "target"), "--data", "x", "--output", "x"]
    args = make_parser("t", "", script.add_args).parse_args(required)
    weights = load_file(mini / "eagle3" / "model.safetensors")
    args.draft_vocab_size = len(weights["d2t"])
    counts = weights["t2d"].long()
    target = FrozenTarget(load_model(str(mini / "target"), "float32", "cpu"))
    method = script.Eagle3Training(args, target, SimpleNamespace(count_answers=lambda size: counts))
    method.module.load_state_dict({k: v.float() if v.is_floating_point() else v
                                   for k, v in weights.items()})  # fmt: skip
    prompter = Prompter(load_tokenizer(str(mini / "target")))
    asked = {q["question_id"]: q for q in map(json.loads, open(questions, encoding="utf-8"))}
    steps = 0
    for record in records:
        (choice,) = record["choices"]
        turns, decoded = asked[record["question_id"]]["turns"], list(choice["accept_lengths"])
        for turn, ids in enumerate(choice["output_ids"]):
            prompt = prompter.render(turns[: turn + 1], choice["turns"][:turn])
            whole = torch.tensor(prompt + ids, dtype=torch.int32)
            row = Row(whole, torch.arange(len(whole)) >= len(prompt))
            batch = Features(target, method.needs, None, {}).batch([row])
            with torch.no_grad():
                drafts = method.drafts(batch, 5)
            found = accepted(drafts, batch.ids, batch.mask)
            assert found == (len(ids) - 1, choice["decoding_steps"][turn])
            steps += found[1]
        assert sum(choice["decoding_steps"]) == len(decoded)
    assert steps > 20
