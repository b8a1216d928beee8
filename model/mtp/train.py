"""Train a multi-token-prediction head on a frozen target: one head for several steps (FastMTP).

Source: FastMTP, arXiv 2509.18362, section 3: cross-entropy with the target's own answers, step k
        weighs beta^(k-1); the defaults are theirs
Run:    python -m model.mtp.train --model-path XiaomiMiMo/MiMo-7B-RL --data answers.jsonl
        --output mtp-mimo-7b
The head is written in DeepSeek's layout into a folder of its own, for --mtp-path. Its layer is one
of the target's class and begins as the target's last one.
"""

from __future__ import annotations

from model.common.args import at_least, between
from model.common.training.trainer import HeadTraining, main

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 8192,
    "learning_rate": 5e-5,
    "betas": [0.9, 0.95],
    "warmup": 0.05,
    "schedule": "cosine",
}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--num-steps", type=at_least(1), default=3, help="steps over the head's own outputs")
    add("--step-decay", type=between(0, 1), default=0.6, help="beta; 0: the first step alone")
    add(
        "--attend",
        choices=("own", "first"),
        default="own",
        help="keys of a later step: of its own rows, as published, or of the first step, as when "
        "decoding",
    )
    add(
        "--fc-init",
        choices=("random", "mean"),
        default="random",
        help="of the linear layer; mean: half the embedding and half the state",
    )


class MtpTraining(HeadTraining):
    """Row r of step k (from 1 on) reads token r + k and predicts token r + 1 + k."""

    title = "Multi-token-prediction head"

    def __init__(self, args, target, data):
        from model.mtp.head import layer_config, rotary_of
        from model.mtp.unroll import step_weights

        self.args, self.target = args, target
        self.weights = step_weights(args.step_decay, args.num_steps)
        config = layer_config(target.config)
        self.module = self._module(config)
        self.module.borrowed = target.embedding, target.lm_head
        rotary, self.kind = rotary_of(target.model, config)
        self.rotary = rotary.to(target.device)

    def _module(self, config):
        """The head before training: the target's last layer and final norm, other norms plain."""
        import torch

        from model.mtp.head import MtpModule
        from model.mtp.unroll import NAME, register

        register()
        with torch.device("meta"):
            module = MtpModule(config, attention=NAME)
        module.to_empty(device="cpu")
        decoder, epsilon = self.target.model.get_decoder(), config.rms_norm_eps
        module.layer.load_state_dict(self._last_layer(decoder, module.layer))
        module.norm.load_state_dict(decoder.norm.state_dict())
        for norm in (module.enorm, module.hnorm):
            plain = type(decoder.norm)(config.hidden_size, eps=epsilon)
            norm.load_state_dict(plain.state_dict())
        module.eh_proj.reset_parameters()
        if self.args.fc_init == "mean":
            half = torch.eye(config.hidden_size) / 2
            module.eh_proj.weight.data.copy_(torch.cat([half, half], -1))
        return module.float()

    def _last_layer(self, decoder, layer) -> dict:
        """Tensors of the target's last layer that is of the head's kind."""
        from model.common.errors import BadInput

        wanted = {name: tensor.shape for name, tensor in layer.state_dict().items()}
        for own in reversed(decoder.layers):
            tensors = own.state_dict()
            if {name: tensor.shape for name, tensor in tensors.items()} == wanted:
                return tensors
        raise BadInput(f"{self.args.model_path}: no layer of full attention to begin with")

    def loss(self, batch):
        """Weighted sum of the steps' cross-entropies; loss and accuracy of each step.

        Of a conversation of T tokens T - K - 1 rows count, for all K steps, where the token that
        they predict is an answer's.
        """
        import torch

        from model.common.training.step import summed

        num_steps, total, metrics = self.args.num_steps, 0.0, {}
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        fits = place < (batch.lengths - num_steps - 1).unsqueeze(1)
        for step, states in enumerate(self.states(batch, num_steps, self.args.attend), 1):
            rows = batch.labelled(1 + step) & fits
            goal = batch.ids.roll(-(1 + step), 1)[rows]
            sums = summed(self._scored, states[rows], goal)
            loss, right = (value / max(len(goal), 1) for value in sums)
            total = total + self.weights[step - 1] * loss
            metrics |= {f"loss_{step}": loss.detach(), f"accuracy_{step}": right}
        return total, metrics

    def _scored(self, states, goal):
        """Sums over rows of states [N, H]: cross-entropy with ids [N], how often they are best."""
        from torch.nn.functional import cross_entropy

        logits = self.target.logits(states)
        return cross_entropy(logits, goal, reduction="sum"), (logits.argmax(-1) == goal).sum()

    def states(self, batch, depth: int, attend: str):
        """The head's states [B, T, H] of each step over its own outputs."""
        import torch

        from model.mtp.unroll import Steps

        module, steps, states = self.module, Steps(attend), batch.hidden["last"]
        place = torch.arange(batch.ids.shape[1], device=states.device).unsqueeze(0)
        for step in range(depth):
            rows = module.rows(batch.ids.roll(-(1 + step), 1), states)
            rotary = self.rotary(rows, place + step, **self.kind)
            states = module.through(rows, rotary, steps.mask(rows), steps=steps)
            yield states

    def drafts(self, batch, depth):
        """See HeadTraining; as when decoding, whatever --attend says."""
        import torch

        rows, found = batch.labelled(2), []
        for states in self.states(batch, depth, "first"):
            best = torch.full_like(batch.ids, -1)
            best[rows] = self.target.best(states[rows])
            found.append(best)
        return torch.stack(found, -1)

    def save(self, folder):
        """Write config.json and model.safetensors, names as DeepSeek's."""
        from model.common.heads.checkpoint import save_checkpoint
        from model.mtp.layouts import FILE, LAYOUTS

        config, layout = self.target.config, LAYOUTS[0]
        fields = {"architectures": ["MtpHead"], "model_type": config.model_type}
        names = ("hidden_size", "vocab_size", "num_hidden_layers")
        fields |= {name: getattr(config, name) for name in names}
        fields["num_nextn_predict_layers"] = 1
        prefix = f"model.layers.{config.num_hidden_layers}."
        tensors = {
            prefix + layout.published(name): tensor
            for name, tensor in self.module.state_dict().items()
        }
        save_checkpoint(folder, fields, FILE, tensors)


if __name__ == "__main__":
    main("train_mtp", __doc__, add_args, MtpTraining, RECIPE)
