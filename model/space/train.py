"""Fine-tune a target with mask tokens (semi-autoregressive fine-tuning): all weights are trained.

The result is an ordinary model directory with its tokenizer; config.json names the mask ids.
Decode it with SPACE, and with vanilla for the baseline.

Source: Yi, Lin, Li, Ning, Yu, Xiao, arXiv 2402.11809, section 3.2; recipe: github.com/cteant/SPACE
Run:    python -m model.space.train --model-path lmsys/vicuna-7b-v1.3 --template vicuna_v1.1
        --data ShareGPT_V4.3_unfiltered_cleaned_split.json --output vicuna-7b-space
"""

from __future__ import annotations

from model.common.args import at_least, between
from model.common.errors import BadInput
from model.common.training.trainer import ModelTraining, add_checkpointing, main

RECIPE = {
    "dtype": "bfloat16",
    "mixed_precision": "bf16",
    "max_length": 2048,
    "batch_tokens": 8192,
    "accumulate": 8,
    "learning_rate": 5e-5,
    "warmup": 0.0,
    "schedule": "cosine",
    "clip_norm": 1.0,
    "save_every_s": 1800.0,
}


def add_args(parser):
    """Flags that only this method has."""
    add = parser.add_argument
    add("--mask-num", type=at_least(1), default=5, help="masks of a group")
    add(
        "--mask-id",
        type=at_least(0),
        nargs="+",
        help="ids of the vocabulary to use as masks, one or --mask-num; none: as config.json says,"
        " else new ones are added",
    )
    add("--separate-masks", action="store_true", help="add a mask id for every place, not one")
    add("--mask-prob", type=between(0, 1), default=0.5, help="share of samples with masks")
    add("--mask-loss-weight", type=between(0, 1e3), default=1.0, help="of a mask's cross-entropy")
    add(
        "--scheme",
        choices=("cut", "append"),
        default="cut",
        help="cut, as published: a sample ends in its masks; append: masks stand behind the sample",
    )
    add("--num-groups", type=at_least(1), default=1, help="groups per sample; above 1: append only")
    add_checkpointing(parser)


class SpaceTraining(ModelTraining):
    """The module is the target itself."""

    title = "Target fine-tuned with mask tokens (SPACE)"

    def __init__(self, args, target, data):
        from model.common.target.attention import mask_kinds
        from model.common.target.logits import check_logits

        super().__init__(args)
        if args.scheme == "cut" and args.num_groups > 1:
            raise BadInput("--num-groups above 1 needs --scheme append")
        check_logits(target.model)
        self.config, model = target.config, target.model.float()
        self.kinds = mask_kinds(self.config)
        self.masks = choose_masks(args, model, self.tokenizer).to(target.device)
        self.train_all(model)

    def sample(self, batch):
        """A samples.Sample of a features.Batch; in evaluation every row is masked that can be."""
        from model.space import samples

        share = self.args.mask_prob if self.module.training else 1.0
        k = len(self.masks)
        if self.args.scheme == "append":
            cuts = samples.draw_cuts(batch.mask, k, self.args.num_groups, share)
            return samples.append_groups(batch.ids, batch.mask, self.masks, cuts)
        cuts = [samples.draw_cut(row, k, share) for row in batch.mask]
        return samples.cut_rows(batch.ids, batch.mask, self.masks, cuts)

    def loss(self, batch):
        """Mean cross-entropy of text and masks; loss and accuracy of the text and of each mask."""
        from torch.nn.functional import cross_entropy

        from model.common.target.logits import logits_of

        sample = self.sample(batch)
        chosen = sample.labels >= 0
        out = self.module.get_decoder()(
            input_ids=sample.ids,
            attention_mask=self.attention_masks(sample),
            position_ids=sample.positions,
            use_cache=False,
        )
        scores = self.module.get_output_embeddings()(out.last_hidden_state[chosen]).float()
        logits = logits_of(scores, self.config)
        labels, places = sample.labels[chosen], sample.places[chosen]
        losses = cross_entropy(logits, labels, reduction="none")
        weights = 1 + (places > 0) * (self.args.mask_loss_weight - 1)
        right = (logits.argmax(-1) == labels).float()
        metrics = {}
        for place in range(1 + len(self.masks)):
            here = places == place
            if here.any():
                name = f"mask_{place}" if place else "text"
                metrics[f"loss_{name}"] = losses[here].mean().detach()
                metrics[f"accuracy_{name}"] = right[here].mean()
        return (losses * weights).sum() / max(len(labels), 1), metrics

    def attention_masks(self, sample):
        """What the model takes as its mask: None for a causal one, else one of each kind."""
        from model.common.target.attention import additive

        if sample.allowed is None:
            return None
        distance = sample.positions.unsqueeze(2) - sample.positions.unsqueeze(1)
        masks = {}
        for kind, window in self.kinds.items():
            allowed = sample.allowed if window is None else sample.allowed & (distance < window)
            if self.module.config._attn_implementation == "eager":  # it adds the mask
                masks[kind] = additive(allowed, self.module.dtype)
            else:
                masks[kind] = allowed.unsqueeze(1)
        return masks if len(masks) > 1 else next(iter(masks.values()))


def choose_masks(args, model, tokenizer):
    """Mask ids [k] of the flags, of the config, or new ones; the config is made to name them."""
    import torch

    from model.space.drafter import IDS_FIELD, NUM_FIELD, read_masks

    ids = args.mask_id or getattr(model.config, IDS_FIELD, None)
    if ids and args.separate_masks:
        raise BadInput("--separate-masks is for new ids; here the mask ids are given")
    if not ids:
        ids = add_masks(model, tokenizer, args.mask_num if args.separate_masks else 1)
    masks = read_masks(model.config, ids, args.mask_num)
    setattr(model.config, IDS_FIELD, ids)
    setattr(model.config, NUM_FIELD, args.mask_num)
    return torch.tensor(masks)


def add_masks(model, tokenizer, num: int) -> list[int]:
    """Add mask tokens to the tokenizer, and rows for them, the tables' means, to the model."""
    import torch

    names = ["<|space_mask|>"] if num == 1 else [f"<|space_mask_{i}|>" for i in range(1, num + 1)]
    tokenizer.add_tokens(names, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(names)
    known = model.config.get_text_config().vocab_size
    if max(ids) >= known:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            mean = table.weight[:known].mean(0)
            table.weight[min(known, min(ids)) :] = mean
    return ids


if __name__ == "__main__":
    main("train_space", __doc__, add_args, SpaceTraining, RECIPE)
