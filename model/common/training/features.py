"""What a draft head is trained on: batches with the frozen target's hidden states and logits."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.common.prompts.templates import Row, collate


class FrozenTarget:
    """The target's transformers model, read without a cache and never trained.

    model, config    as loaded; config is the text model's
    vocab_size, dtype, device
    """

    def __init__(self, model):
        from model.common.target.attention import own_attention

        own_attention(model)
        self.model = model.eval().requires_grad_(False)
        self.config = model.config.get_text_config()
        self.vocab_size, self.dtype, self.device = self.config.vocab_size, model.dtype, model.device

    @property
    def lm_head(self) -> torch.nn.Module:
        """Hidden states after the final norm -> logits; gradients may flow through it."""
        return self.model.get_output_embeddings()

    @property
    def embedding(self) -> torch.nn.Module:
        """Token ids -> input embeddings."""
        return self.model.get_input_embeddings()

    @torch.no_grad()  # tensors of inference mode could not be saved for the head's backward
    def hidden(self, ids: Tensor, names: tuple) -> dict:
        """{name: [B, T, H]} of right-padded ids [B, T]; names as in drafter.Needs."""
        if not names:
            return {}
        out = self.model.get_decoder()(
            input_ids=ids, use_cache=False, output_hidden_states=set(names) != {"last"}
        )
        return {
            name: out.last_hidden_state if name == "last" else out.hidden_states[name]
            for name in names
        }

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """float32 logits [.., V] of states [.., H] after the final norm."""
        logits = self.lm_head(states.to(self.lm_head.weight.dtype)).float()
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


@dataclass
class Batch:
    """Conversations [B, T], padded on the right with id 0, and what the target says about them.

    ids      [B, T] long
    mask     [B, T] bool: the token belongs to an answer, its end included; False in the padding
    lengths  [B] long
    hidden   {name: [B, T, H] float32}, what HeadTraining.needs names
    target   the FrozenTarget
    rows     the rows as they were loaded, for what a method's own loader adds to them
    """

    ids: Tensor
    mask: Tensor
    lengths: Tensor
    hidden: dict
    target: FrozenTarget
    rows: list[Row]

    def labelled(self, shift: int) -> Tensor:
        """Positions [B, T] bool whose token `shift` later belongs to an answer.

        mask [0, 0, 1, 1] and shift 1 give [0, 1, 1, 0].
        """
        out = torch.zeros_like(self.mask)
        out[:, : max(self.mask.shape[1] - shift, 0)] = self.mask[:, shift:]
        return out

    def logits(self, rows: Tensor | None = None) -> Tensor:
        """The target's float32 logits at rows ([B, T] bool) -> [N, V]; of all, [B, T, V].

        Needs the hidden states named "last".
        """
        states = self.hidden["last"]
        return self.target.logits(states if rows is None else states[rows])


class Features:
    """Makes batches; with a folder, hidden states are written there once and read afterwards.

    settings: what the states depend on; a folder that was written under others is emptied.
    """

    def __init__(self, target: FrozenTarget, names: tuple, folder: Path | None, settings: dict):
        self.target, self.names, self.folder = target, names, folder
        if folder is not None:
            self._open(json.dumps(settings, sort_keys=True))

    def _open(self, settings: str) -> None:
        note = self.folder / "settings.json"
        if not note.exists() or note.read_text(encoding="utf-8") != settings:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            note.write_text(settings, encoding="utf-8")

    def batch(self, name: str, rows: list[Row]) -> Batch:
        """The batch of rows; name: of its file in the cache."""
        ids, mask, lengths = (tensor.to(self.target.device) for tensor in collate(rows))
        hidden = self._hidden(name, ids)
        hidden = {key: states.float() for key, states in hidden.items()}
        return Batch(ids, mask, lengths, hidden, self.target, rows)

    def _hidden(self, name: str, ids: Tensor) -> dict:
        if self.folder is None:
            return self.target.hidden(ids, self.names)
        from safetensors.torch import load_file, save_file

        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            states = self.target.hidden(ids, self.names)
            part = file.with_suffix(f".{os.getpid()}.part")
            save_file({str(key): value.contiguous() for key, value in states.items()}, part)
            os.replace(part, file)
        stored = load_file(file, device=str(self.target.device))
        return {key: stored[str(key)] for key in self.names}
