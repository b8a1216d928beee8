"""The layers of a block drafter: Qwen3's, over a block's rows and what is known of the target.

Every layer's keys and values of the text are projections of one fused row of target states a token
(KV injection); no token of the text is embedded. A block, the root and masks, is read at once.
Source: Chen et al., arXiv 2602.06036; DFlash2: github.com/z-lab/dflash (convolutions, selector)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.common.heads.head import RowAttention
from model.common.target.attention import write
from model.dflash.config import Design


class BlockAttention(RowAttention):
    """A Llama layer's attention with norms of each head's queries and keys."""

    def __init__(self, config):
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        super().__init__(config)
        self.q_norm = LlamaRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = LlamaRMSNorm(config.head_dim, config.rms_norm_eps)

    def _heads(self, layer, rows: Tensor, norm=None) -> Tensor:
        """A projection of rows [B, r, H] by heads, [B, heads, r, D]."""
        split = layer(rows).unflatten(-1, (-1, self.head_dim))
        return (split if norm is None else norm(split)).transpose(1, 2)

    def known(self, context: Tensor, rotary) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, r, D] of context rows [B, r, H]."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        key = self._heads(self.k_proj, context, self.k_norm)
        return apply_rotary_pos_emb(key, key, *rotary)[1], self._heads(self.v_proj, context)

    def project(self, rows, rotary):
        """See RowAttention."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        query = self._heads(self.q_proj, rows, self.q_norm)
        key = self._heads(self.k_proj, rows, self.k_norm)
        return *apply_rotary_pos_emb(query, key, *rotary), self._heads(self.v_proj, rows)


class GroupedConv(nn.Module):
    """DFlash2: a causal convolution over a block's rows before a sublayer and one behind it.

    A coefficient is its channel's own plus one of the channel's group, which depends on the row
    that the sublayer reads: for the second convolution too. Rows before the block are zero.
    """

    def __init__(self, width: int, taps: int, group: int):
        super().__init__()
        self.base_kernel = nn.Parameter(torch.zeros(2, taps, width))
        self.kernel_projection = nn.Linear(width, 2 * taps * (width // group), bias=False)

    def forward(self, rows: Tensor, sublayer) -> Tensor:
        """rows [.., b, H] -> [.., b, H], sublayer inside."""
        _, taps, width = self.base_kernel.shape
        own = self.kernel_projection(rows).unflatten(-1, (2, taps, -1))  # [.., b, 2, taps, G]
        own = own.repeat_interleave(width // own.shape[-1], -1)
        before, after = (self.base_kernel + own).unbind(-3)
        return mixed(sublayer(mixed(rows, before)), after)


def mixed(rows: Tensor, kernel: Tensor) -> Tensor:
    """Each row [.., b, H] and those before it in the block, weighed by kernel [.., b, taps, H]."""
    length = rows.shape[-2]
    out = kernel[..., 0, :] * rows
    for tap in range(1, kernel.shape[-2]):
        earlier = nn.functional.pad(rows, (0, 0, tap, 0))[..., :length, :]
        out = out + kernel[..., tap, :] * earlier
    return out


class CandidateSelector(nn.Module):
    """DFlash2: scores of a slot's candidates that depend on the token before them."""

    def __init__(self, width: int, vocab: int, rank: int, num_candidates: int):
        super().__init__()
        self.num_candidates = num_candidates
        self.predecessor_codebook = nn.Parameter(torch.randn(vocab, rank) * 0.02)
        self.successor_codebook = nn.Parameter(torch.zeros(vocab, rank))
        self.hidden_projection = nn.Linear(width, rank, bias=False)

    def forward(self, states: Tensor, before: Tensor, ids: Tensor, logits: Tensor) -> Tensor:
        """[.., k] of states [.., H], tokens before [..], candidates and their logits [.., k]."""
        edge = self.predecessor_codebook[before] * self.hidden_projection(states)
        return logits + (self.successor_codebook[ids] @ edge.unsqueeze(-1)).squeeze(-1)


class BlockLayer(nn.Module):
    """Qwen3's layer; with convolutions around both of its parts where a design has them."""

    def __init__(self, config, conv: tuple[int, int] | None):
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        super().__init__()
        norm = (config.hidden_size, config.rms_norm_eps)
        self.input_layernorm, self.self_attn = LlamaRMSNorm(*norm), BlockAttention(config)
        self.post_attention_layernorm, self.mlp = LlamaRMSNorm(*norm), LlamaMLP(config)
        self.attention_conv = self.mlp_conv = None
        if conv:
            self.attention_conv = GroupedConv(config.hidden_size, *conv)
            self.mlp_conv = GroupedConv(config.hidden_size, *conv)

    def forward(self, rows: Tensor, attend, mask) -> Tensor:
        """rows [.., b, H] of blocks; attend(attention, normed rows, mask) -> what it gives them."""

        def attended(own):
            return attend(self.self_attn, own, mask)

        rows = rows + around(self.attention_conv, self.input_layernorm(rows), attended)
        return rows + around(self.mlp_conv, self.post_attention_layernorm(rows), self.mlp)


def around(conv: GroupedConv | None, rows: Tensor, sublayer) -> Tensor:
    """A sublayer of rows, inside a convolution where there is one."""
    return sublayer(rows) if conv is None else conv(rows, sublayer)


class BlockModule(nn.Module):
    """The published tensors.

    target_width  H_t of the target's states
    owns          which of "embedding" and "output" the file brings; a reduced vocabulary has to
    borrowed      (embedding, lm_head): the target's, or its own
    """

    def __init__(self, config, design: Design, target_width: int, owns: tuple[str, ...] = ()):
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        super().__init__()
        width, vocab = config.hidden_size, config.vocab_size
        norm = (width, config.rms_norm_eps)
        self.design = design
        self.fc = nn.Linear(len(design.states) * target_width, width, bias=False)
        self.hidden_norm, self.norm = LlamaRMSNorm(*norm), LlamaRMSNorm(*norm)
        self.layers = nn.ModuleList(BlockLayer(config, design.conv) for _ in design.windows)
        if design.selector:
            self.candidate_selector = CandidateSelector(width, vocab, *design.selector)
        if "embedding" in owns:
            self.embed_tokens = nn.Embedding(vocab, width)
        if "output" in owns:
            self.lm_head = nn.Linear(width, design.draft_vocab or vocab, bias=False)
        if design.draft_vocab:
            self.register_buffer("d2t", torch.zeros(design.draft_vocab, dtype=torch.long))
            self.register_buffer("t2d", torch.zeros(vocab, dtype=torch.bool))
        self.borrow(None, None)

    def borrow(self, embedding: nn.Module | None, lm_head: nn.Module | None) -> None:
        """Take the target's modules in place of those that it does not own."""
        own = getattr(self, "embed_tokens", None), getattr(self, "lm_head", None)
        self.borrowed = (own[0] or embedding, own[1] or lm_head)  # a tuple: no submodules

    def embed(self, root: Tensor) -> Tensor:
        """Rows [.., b, H] of the blocks of root tokens [..]."""
        masks = root.unsqueeze(-1).expand(*root.shape, self.design.block_size - 1)
        tokens = torch.cat([root.unsqueeze(-1), torch.full_like(masks, self.design.mask_id)], -1)
        rows = self.borrowed[0](tokens).to(self.fc.weight.dtype)
        return rows if self.design.embedding_scale == 1 else rows * self.design.embedding_scale

    def context(self, states: Tensor) -> Tensor:
        """One row a token, [B, r, H], of the target's states side by side, [B, r, K H_t]."""
        return self.hidden_norm(self.fc(states))

    def inject(self, states: Tensor, rotary, place: tuple) -> Tensor:
        """Write the keys and values of tokens into every layer's cache; place as RowAttention's."""
        rows = self.context(states)
        for layer in self.layers:
            attention = layer.self_attn
            write(attention.kv, *attention.known(rows, rotary), *place, 0)
        return rows

    def forward(self, rows: Tensor, rotary, masks: tuple, place: tuple) -> Tensor:
        """States [B, b, H], behind the final norm, of blocks [B, b, H]; a mask a layer."""

        def attend(attention, own, mask):
            return attention(own, rotary, mask, place)

        for layer, mask in zip(self.layers, masks):
            rows = layer(rows, attend, mask)
        return self.norm(rows)

    def logits(self, states: Tensor) -> Tensor:
        """[.., H] -> [.., V_d], scaled and capped as the design says."""
        design, rows = self.design, self.borrowed[1](states)
        rows = rows if design.multiplier == 1 else rows * design.multiplier
        return rows if design.cap is None else torch.tanh(rows / design.cap) * design.cap
