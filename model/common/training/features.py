"""What a draft head is trained on: batches with the frozen target's hidden states and logits."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.common.prompts.templates import Row, collate
from model.common.target.logits import logits_of

BEST_ROWS = 512  # of which all logits are there at a time


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
    def hidden(self, ids: Tensor, names: tuple, mask: Tensor) -> dict:
        """{name: [B, T, ..]} of right-padded ids [B, T]; names as in HeadTraining.needs.

        mask  [B, T] bool, a Batch's: "best" is looked for before these tokens
        """
        if not names:
            return {}
        layers = set(names) - {"last", "best"}
        out = self.model.get_decoder()(
            input_ids=ids, use_cache=False, output_hidden_states=bool(layers)
        )
        found = {layer: out.hidden_states[layer] for layer in layers}
        found["last"] = out.last_hidden_state
        if "best" in names:
            before = mask.roll(-1, 1)
            before[:, -1] = False
            found["best"] = ids.new_full(ids.shape, -1)
            found["best"][before] = self.best(out.last_hidden_state[before])
        return {name: found[name] for name in names}

    @torch.no_grad()
    def best(self, states: Tensor) -> Tensor:
        """The likeliest ids [N] after states [N, H]; logits of BEST_ROWS rows at a time."""
        return torch.cat([self.logits(part).argmax(-1) for part in states.split(BEST_ROWS)])

    def logits(self, states: Tensor, head: torch.nn.Module | None = None) -> Tensor:
        """float32 logits [.., V] of states [.., H] after the final norm, true ones or guessed;
        gradients flow through. Laws are the model's where check_logits() has passed it.

        head: some_ids() of the LM head, whose ids alone are scored; none: all
        """
        head = head or self.lm_head
        logits = head(states.to(head.weight.dtype)).float()
        return logits_of(logits, self.config)

    def some_ids(self, ids: Tensor) -> torch.nn.Linear:
        """The LM head's rows of ids [N] as a float32 layer without gradients, H -> N."""
        whole = self.lm_head
        part = torch.nn.Linear(whole.weight.shape[1], len(ids), bias=whole.bias is not None)
        part.weight.data = whole.weight[ids].float()
        if whole.bias is not None:
            part.bias.data = whole.bias[ids].float()
        return part.to(self.device).requires_grad_(False)


@dataclass
class Batch:
    """Conversations [B, T], padded on the right with id 0, and what the target says about them.

    ids      [B, T] long
    mask     [B, T] bool: the token belongs to an answer, its end included; False in the padding
    lengths  [B] long
    hidden   {name: [B, T, H] float32}, what HeadTraining.needs names; "best" is [B, T] long
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
    """Makes batches; with a folder, what the target says is written there once and read afterwards.

    A conversation has a file there, named by a hash of what its states depend on.

    settings  what the states depend on beside the ids
    dtype     that states are rounded to, kept or not; none: the target's
    shared    by heads of a target and data files that grow: of other batches too, whose last bits
              differ. Without it kept states are to the bit those that are computed.
    """

    def __init__(
        self,
        target: FrozenTarget,
        names: tuple,
        folder: Path | None,
        settings: dict,
        dtype: torch.dtype | None = None,
        shared: bool = False,
    ):
        self.target, self.names, self.dtype = target, names, dtype
        self.folder, self.shared = folder, shared
        self.settings = json.dumps({**settings, "dtype": str(dtype)}, sort_keys=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def batch(self, rows: list[Row]) -> Batch:
        """The batch of rows."""
        ids, mask, lengths = (tensor.to(self.target.device) for tensor in collate(rows))
        if self.folder is None:
            hidden = self._computed(ids, mask)
        else:
            hidden = self._kept(rows, ids, mask)
        hidden = {k: v.float() if v.is_floating_point() else v for k, v in hidden.items()}
        return Batch(ids, mask, lengths, hidden, self.target, rows)

    def _computed(self, ids: Tensor, mask: Tensor) -> dict:
        states = self.target.hidden(ids, self.names, mask)
        if self.dtype is None:
            return states
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in states.items()}

    def _kept(self, rows: list[Row], ids: Tensor, mask: Tensor) -> dict:
        """As _computed(); all of a batch are computed where one is missing, so that a killed run
        goes on with the same numbers."""
        from torch.nn.utils.rnn import pad_sequence

        files = self._files(rows)
        found = [self._read(file) for file in files]
        if None in found:
            states = self._computed(ids, mask)
            for i, (file, row) in enumerate(zip(files, rows)):
                own = {name: part[i, : len(row.ids)] for name, part in states.items()}
                self._write(file, own)
            return states
        return {
            name: pad_sequence([one[name] for one in found], batch_first=True, padding_value=value)
            for name, value in ((name, -1 if name == "best" else 0) for name in self.names)
        }

    def _files(self, rows: list[Row]) -> list[Path]:
        """Where the states of a batch's rows are kept."""
        own = [row.ids.numpy().tobytes() + row.mask.numpy().tobytes() for row in rows]
        batch = b"" if self.shared else b"".join(own)
        names = []
        for i, content in enumerate(own):
            place = "" if self.shared else str(i)
            key = b"|".join((self.settings.encode(), place.encode(), content, batch))
            names.append(hashlib.sha256(key).hexdigest()[:40])
        return [self.folder / f"{name}.safetensors" for name in names]

    def _read(self, file: Path) -> dict | None:
        """{name: [t, ..]}; None where something is missing."""
        from safetensors.torch import load_file

        if not file.exists():
            return None
        stored = load_file(file, device=str(self.target.device))
        if any(str(name) not in stored for name in self.names):
            return None
        return {name: stored[str(name)] for name in self.names}

    def _write(self, file: Path, states: dict) -> None:
        """Put states into a conversation's file, beside those that are there for another head."""
        from safetensors.torch import load_file, save_file

        kept = load_file(file) if file.exists() else {}
        kept |= {str(name): value.cpu().contiguous() for name, value in states.items()}
        part = file.with_suffix(f".{os.getpid()}.part")
        save_file(kept, part)
        os.replace(part, file)
