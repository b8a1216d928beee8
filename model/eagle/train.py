"""Train EAGLE's head (for EAGLE and EAGLE-2) on a frozen target.

Source: Li et al., arXiv 2401.15077, section 4.1: regression on the next feature plus 0.1 times the
        cross-entropy of its logits with the target's; noise on the features
Run:    python -m model.eagle.train --model-path lmsys/vicuna-7b-v1.3 --template vicuna_v1.1
        --data ShareGPT_V4.3_unfiltered_cleaned_split.json --output eagle-vicuna-7b
A row counts where the token that it predicts is an answer's.
"""

from __future__ import annotations

from functools import partial

from model.common.args import at_least, between
from model.common.training.trainer import HeadTraining, main

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 8192,
    "learning_rate": 3e-5,
    "betas": [0.9, 0.95],
    "weight_decay": 0.01,
    "warmup": 0.0025,
    "schedule": "linear",
    "clip_value": 0.5,
}
NOISE_LENGTH = 512  # tokens for which --noise is the amplitude; it falls with longer sequences


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--reg-weight", type=between(0, 1e3), default=1.0, help="of the features' smooth L1")
    add("--cls-weight", type=between(0, 1e3), default=0.1, help="of the logits' cross-entropy")
    add("--noise", type=between(0, 10), default=0.1, help="amplitude at 512 tokens; 0 = none")
    add("--bias", choices=("on", "off"), default="on", help="of the first linear layer")
    add(
        "--loss-vocab-size",
        type=at_least(1),
        help="cross-entropy over the most frequent answer ids; none: all, as published",
    )
    add(
        "--save-embedding",
        choices=("on", "off"),
        default="on",
        help="a copy of the target's in the file, as published; off: loaders here need none",
    )


class EagleTraining(HeadTraining):
    """Row i reads feature i and token i + 1, and learns feature i + 1 and what follows from it.

    A row whose best target token is not among --loss-vocab-size's learns the feature alone.
    """

    def __init__(self, args, target, data):
        from model.common.heads.head import CausalRows, head_fields, llama_config
        from model.common.target.logits import check_logits
        from model.common.training.vocabulary import DraftVocabulary
        from model.eagle.head import EagleModule

        check_logits(target.model)
        self.args, self.target = args, target
        self.fields = head_fields(target.config)
        self.fields |= {"vocab_size": target.lm_head.weight.shape[0], "bias": args.bias == "on"}
        config = llama_config(self.fields)
        self.module = EagleModule(config, args.bias == "on", target.embedding, target.lm_head)
        self.rows = CausalRows(config, target.device)
        self.needs = ("last",)
        self.vocabulary = None
        if args.loss_vocab_size:
            self.needs += ("best",)
            self.vocabulary = DraftVocabulary(
                "--loss-vocab-size", data, target, args.loss_vocab_size
            )

    def loss(self, batch):
        """Weighted sum of both losses, means over rows; each, and top-1 to 3 agreement."""
        from torch.nn.functional import smooth_l1_loss

        from model.common.training.unroll import Places

        features = batch.hidden["last"]
        places = Places(batch.labelled(2))  # rows that predict an answer's token
        guessed = next(self.states(batch, self.noisy(features), places))[places.valid]
        following = places.of(features.roll(-1, 1))[places.valid]
        regression = smooth_l1_loss(guessed, following)
        entropy, metrics = self.cross_entropy(batch, guessed, following, places)
        metrics |= {"regression": regression.detach(), "cross_entropy": entropy.detach()}
        loss = self.args.reg_weight * regression + self.args.cls_weight * entropy
        return loss, metrics

    def cross_entropy(self, batch, guessed, following, places):
        """(mean over rows, {"top_k": share of rows}) of guessed features [N, H] for true ones."""
        from model.common.training.step import summed

        num_rows, head = max(len(guessed), 1), None
        if self.vocabulary is not None:
            best = places.of(batch.hidden["best"].roll(-1, 1))[places.valid]
            inside, _ = self.vocabulary.places(best)
            guessed, following, head = guessed[inside], following[inside], self.vocabulary.head
        entropy, *found = summed(partial(self._scored, head), guessed, following)
        metrics = {f"top_{k}": hits / num_rows for k, hits in enumerate(found, 1)}
        return entropy / max(len(guessed), 1), metrics

    def _scored(self, head, guessed, following):
        """Sums over rows of features [N, H]: the cross-entropy, and how often the target's best id
        is among the first 1, 2 and 3; head: as in FrozenTarget.logits."""
        import torch

        from model.common.training.unroll import soft_cross_entropy

        with torch.no_grad():
            wanted = self.target.logits(following, head)
        logits = self.target.logits(guessed, head)
        hits = logits.detach().topk(3, dim=-1).indices == wanted.argmax(-1, keepdim=True)
        entropy = soft_cross_entropy(wanted.softmax(-1), logits)
        return entropy, *(hits[:, :k].any(-1).sum() for k in (1, 2, 3))

    def states(self, batch, features, places, depth: int = 1):
        """The head's features [B, Q, H] at places, of each step unrolled over its own outputs."""
        import torch

        from model.common.training.unroll import Unrolled

        layer, unrolled, rows = self.module.layers[0], Unrolled(self.rows, places), features
        for step in range(depth):
            tokens = places.tokens(batch.ids, step) if step else batch.ids.roll(-1, 1)
            embedded = self.target.embedding(tokens).to(features.dtype)
            inputs = self.module.fc(torch.cat([embedded, rows], -1))
            attended = unrolled.attend(layer.self_attn, inputs)
            rows = layer.finish((inputs if step else places.of(inputs)) + attended)
            yield rows

    def drafts(self, batch, depth):
        """See HeadTraining; with all of the target's ids, as at inference."""
        import torch

        from model.common.training.unroll import Places

        places, found = Places(batch.labelled(2)), []
        for rows in self.states(batch, batch.hidden["last"], places, depth):
            best = places.index.new_zeros(places.index.shape)
            best[places.valid] = self.target.best(rows[places.valid])
            found.append(places.spread(best, -1))
        return torch.stack(found, -1)

    def noisy(self, features):
        """Features with uniform noise while training."""
        import torch

        if not self.module.training or not self.args.noise:
            return features
        scale = 2 * self.args.noise * NOISE_LENGTH / max(features.shape[1], 1)
        return features + (torch.rand_like(features) - 0.5) * scale

    def save(self, folder):
        """Write config.json and model.safetensors, names as published."""
        from model.common.heads.checkpoint import save_checkpoint

        dtype = self.module.fc.weight.dtype
        state = self.module.state_dict()
        if self.args.save_embedding == "on":
            state["embed_tokens.weight"] = self.target.embedding.weight.to(dtype)
        save_checkpoint(folder, self.fields, "model.safetensors", state)


if __name__ == "__main__":
    main("train_eagle", __doc__, add_args, EagleTraining, RECIPE)
