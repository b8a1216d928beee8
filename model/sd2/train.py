"""Train a sorted draft: a small Llama whose layer prefixes are drafts themselves.

--loss soft (sorted fine-tuning) takes the mean of all exits' cross-entropies, --loss sft that of
the last exit alone, which is the control. All weights are trained, on the answers' tokens; the
target gives its tokenizer and ids only. The result is an ordinary model directory.

Source: Kavehzadeh et al., S2D, arXiv 2407.01955; recipe: github.com/parsareal/SD2
Run:    python -m model.sd2.train --model-path lmsys/vicuna-7b-v1.5 --template vicuna_v1.1
        --init-from lmsys/vicuna-7b-v1.5 --data ShareGPT_V4.3_unfiltered_cleaned_split.json
        --output vicuna-7b-12layers-soft
"""

from __future__ import annotations

from model.common.args import at_least
from model.common.errors import BadInput
from model.common.training.trainer import ModelTraining, add_checkpointing, main
from model.sd2.flags import (
    EXITS_FIELD,
    THRESHOLDS_FIELD,
    default_thresholds,
    exit_list,
    threshold_list,
)

RECIPE = {  # four processes' steps are the published 128 conversations of at most 2048 tokens
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 8192,
    "accumulate": 8,
    "learning_rate": 2e-5,
    "weight_decay": 0.0,
    "warmup": 0.04,
    "schedule": "cosine",
    "clip_norm": 1.0,
    "save_every_s": 1800.0,
}
SHAPE = ("hidden_size", "intermediate_size", "num_heads", "num_key_value_heads")


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--loss", choices=("soft", "sft"), default="soft", help="of all exits, or of the last")
    add("--exits", type=exit_list, default=[6, 9, 12], help="layers after which a draft ends")
    add(
        "--thresholds",
        type=threshold_list,
        help="kept in config.json for decoding; none: 0.5 each, 0 at the last exit",
    )
    add("--num-layers", type=at_least(1), default=12, help="of the draft; the last exit")
    add("--init-from", help="Llama whose first layers the draft begins with; none: random weights")
    add("--hidden-size", type=at_least(2), help="of random weights; none: the target's")
    add("--intermediate-size", type=at_least(1), help="of random weights; none: the target's")
    add("--num-heads", type=at_least(1), help="of random weights; none: the target's")
    add("--num-key-value-heads", type=at_least(1), help="of random weights; none: --num-heads")
    add("--epochs", type=at_least(1), default=3, help="passes over the data without --num-tokens")
    add_checkpointing(parser)


def load(args, prompter, ends):
    """conversations.TrainingData of --data; sets --num-tokens where it is not given."""
    from model.common.prompts.templates import load_data

    check(args)
    data = load_data(args, prompter, ends)
    args.num_tokens = args.num_tokens or args.epochs * data.num_tokens
    return data


def check(args) -> None:
    """Refuse flags that do not fit together, before anything is read."""
    shown = ",".join(map(str, args.exits))
    if args.exits[-1] != args.num_layers:
        raise BadInput(
            f"--exits {shown}: the last one has to be --num-layers, {args.num_layers}; layers "
            "beyond it would not be trained"
        )
    if args.thresholds and len(args.thresholds) != len(args.exits):
        raise BadInput(f"--thresholds: {len(args.thresholds)} for {len(args.exits)} --exits")
    for name in SHAPE:
        if args.init_from and getattr(args, name):
            raise BadInput(f"--{name.replace('_', '-')} says nothing beside --init-from")


class SortedTraining(ModelTraining):
    """The module is the draft; nothing of the target's states is needed."""

    def __init__(self, args, target, data):
        super().__init__(args)
        self.exits = args.exits
        how = "at all of them (SoFT)" if args.loss == "soft" else "at the last alone (SFT)"
        layers = ", ".join(map(str, self.exits))
        self.title = f"Draft with exits after {layers} layers, trained {how}"
        if args.init_from:
            module = load_prefix(args.init_from, args.num_layers)
            own = module.config.vocab_size
            if own != target.vocab_size:
                raise BadInput(
                    f"--init-from {args.init_from}: {own} ids, but --model-path {args.model_path} "
                    f"has {target.vocab_size}"
                )
        else:
            module = random_draft(args, target.config)
        target.model.get_decoder().layers = None  # they would only fill the device
        setattr(module.config, EXITS_FIELD, args.exits)
        setattr(module.config, THRESHOLDS_FIELD, args.thresholds or default_thresholds(args.exits))
        self.train_all(module.to(target.device))

    def loss(self, batch):
        """The mean of the exits' cross-entropies, or the last one's; those and accuracies by exit.

        In evaluation all exits are reported, whatever was trained.
        """
        import torch

        from model.sd2.losses import exit_losses

        last_alone = self.args.loss == "sft"
        told = self.exits[-1:] if last_alone and self.module.training else self.exits
        found = exit_losses(self.module, batch.ids, batch.labelled(1), told)
        metrics = {}
        for layer, (loss, right) in zip(told, found):
            metrics |= {f"loss_exit_{layer}": loss.detach(), f"accuracy_exit_{layer}": right}
        losses = [loss for loss, _ in found]
        return losses[-1] if last_alone else torch.stack(losses).mean(), metrics


def load_prefix(path: str, num_layers: int):
    """The first layers of a Llama, with its embedding, norm and head, in float32."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    from model.common.target.loading import check_directory, check_tensors

    check_directory(path)
    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type != "llama":
            raise BadInput(f"--init-from {path}: of type {config.model_type}, llama is needed")
        if config.num_hidden_layers < num_layers:
            raise BadInput(
                f"--init-from {path}: {config.num_hidden_layers} layers, --num-layers asks for "
                f"{num_layers}"
            )
        config.num_hidden_layers = num_layers
        model, report = LlamaForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except BadInput:
        raise
    except Exception as error:  # of many kinds, as in load_model()
        lines = str(error).splitlines()
        reason = lines[0] if lines else repr(error)
        raise BadInput(f"--init-from {path}: cannot be loaded: {reason}") from error
    check_tensors(path, report)
    return model


def random_draft(args, config):
    """A Llama of random weights for the target's ids; sizes of the flags, else the target's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = args.num_heads or config.num_attention_heads
    hidden_size = args.hidden_size or config.hidden_size
    if hidden_size % (2 * heads):
        raise BadInput(f"--hidden-size {hidden_size}: {heads} heads of an even size are needed")
    key_value_heads = args.num_key_value_heads or heads
    if heads % key_value_heads:
        raise BadInput(f"--num-key-value-heads {key_value_heads}: no divisor of {heads} heads")
    names = ("vocab_size", "max_position_embeddings", "rms_norm_eps")
    names += ("bos_token_id", "eos_token_id", "pad_token_id")
    same = {name: getattr(config, name, None) for name in names}
    own = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=args.intermediate_size or config.intermediate_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=False,
        **{name: value for name, value in same.items() if value is not None},
    )
    return LlamaForCausalLM(own)


if __name__ == "__main__":
    main("train_sd2", __doc__, add_args, SortedTraining, RECIPE, load=load)
