"""What an audit of sampled answers needs of one token: columns [n] from the target's logits.

p is the target's law of the token after its prefix, warped by the harness's own function. With a
fixed order of the vocabulary, F(y -) the mass before y and v uniform, u = F(x -) + v p(x) is
uniform if x was drawn from p, and independent of everything before it, because p is the law given
the whole prefix: the u of a text are independent and uniform although its tokens are not.

Source: M. Rosenblatt, Remarks on a Multivariate Transformation (1952),
DOI 10.1214/aoms/1177729394; randomised as discrete laws need it.
"""

import hashlib
import math
from dataclasses import dataclass, fields

import torch

from model.common.loop.penalties import NO_PENALTIES, Penalties, forced
from model.common.loop.sampling import warp

# By how much rounding may move a logit, at least; measured, prefill against steps of one and of six
# rows, on the mini target: 2e-5, 0.016, 0.13. A target whose readings differ by more has more.
MARGINS = {"float64": 1e-6, "float32": 1e-3, "float16": 0.05, "bfloat16": 0.5}


@dataclass(frozen=True)
class Sampling:
    """How the tokens were drawn; margin: rounding of a logit that must not convict.

    token_law() is given logits that are penalised().
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    margin: float = MARGINS["float32"]
    penalties: Penalties = NO_PENALTIES

    @classmethod
    def of(cls, settings: dict, margin: float) -> "Sampling":
        """From audit_sampling.find_settings(); what multiplies a logit multiplies its rounding."""
        penalties = Penalties.of(settings)
        warping = {name: settings[name] for name in ("temperature", "top_k", "top_p", "min_p")}
        return cls(**warping, margin=margin * penalties.scale, penalties=penalties)

    @property
    def truncates(self) -> bool:
        """Whether tokens are cut off, so that one can be impossible."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    def penalised(self, logits, prompt: list, answer: list, begin: int):
        """Logits [r, V] of answer[begin : begin + r], each penalised for what precedes it."""
        return forced(self.penalties, logits, prompt, answer, begin)

    def warp(self, logits):
        """As the run's own sampler."""
        return warp(logits, self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass
class TokenLaw:
    """Columns [n] in float64, a row a token; moments are of -log p(y) for y drawn from p.

    surprise   -log p(x)
    entropy    its mean; variance its second central moment; third its third
    best       p of the target's best token
    by_mass    u with the vocabulary ordered by p, descending
    by_id      u with the vocabulary in its own order
    tolerated  outside the support, but by no more than rounding: put back into it
    impossible outside the support; its surprise is infinite and its u mean nothing
    """

    surprise: torch.Tensor
    entropy: torch.Tensor
    variance: torch.Tensor
    third: torch.Tensor
    best: torch.Tensor
    by_mass: torch.Tensor
    by_id: torch.Tensor
    tolerated: torch.Tensor
    impossible: torch.Tensor

    @classmethod
    def join(cls, parts: list) -> "TokenLaw":
        """The rows of several, in order."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def token_law(logits, tokens, uniforms, sampling: Sampling) -> TokenLaw:
    """Columns of tokens [n] drawn after logits [n, V]; uniforms [2, n]: the v of either order."""
    device = logits.device
    tokens, uniforms = tokens.to(device), uniforms.to(device)
    probs = sampling.warp(logits).double()
    own = probs.gather(-1, tokens.unsqueeze(-1))
    outside = own.squeeze(-1) <= 0
    tolerated = outside.clone()
    if outside.any():
        rows = outside.nonzero().squeeze(-1)
        near = _within_rounding(logits[rows], tokens[rows], sampling)
        tolerated[rows] = near
        probs[rows[near]] = _with_token(
            logits[rows[near]], probs[rows[near]], tokens[rows[near]], sampling.temperature
        )
        own = probs.gather(-1, tokens.unsqueeze(-1))
    surprise = -probs.clamp(min=1e-300).log()
    entropy = (probs * surprise).sum(-1, keepdim=True)
    centred = surprise - entropy
    ahead = (probs > own) | ((probs == own) & _before(tokens, probs.shape[-1]))
    columns = {
        "surprise": surprise.gather(-1, tokens.unsqueeze(-1)).squeeze(-1),
        "entropy": entropy.squeeze(-1),
        "variance": (probs * centred**2).sum(-1),
        "third": (probs * centred**3).sum(-1),
        "best": probs.amax(-1),
        "by_mass": (probs * ahead).sum(-1) + uniforms[0] * own.squeeze(-1),
        "by_id": (probs * _before(tokens, probs.shape[-1])).sum(-1) + uniforms[1] * own.squeeze(-1),
        "tolerated": tolerated,
        "impossible": outside & ~tolerated,
    }
    columns["surprise"] = columns["surprise"].masked_fill(columns["impossible"], math.inf)
    return TokenLaw(**{name: column.cpu() for name, column in columns.items()})


def _before(tokens, width: int):
    """Which ids stand before each token, [n, V]."""
    return torch.arange(width, device=tokens.device) < tokens.unsqueeze(-1)


def _within_rounding(logits, tokens, sampling: Sampling):
    """Whether logits that are off by at most the margin could have let each token in, [n] bool.

    Every other token is taken to lose 2 margins against it: whoever is still above it is above it
    in truth. The odds of these against all others are known up to the same factor: of a mass of
    0.999 with a shift of 0.17, at least 0.9988 is theirs.
    """
    shift = 2 * sampling.margin / sampling.temperature
    scores = logits.double() / sampling.temperature
    own = scores.gather(-1, tokens.unsqueeze(-1))
    above = scores > own + shift
    inside = torch.ones_like(tokens, dtype=torch.bool)
    if sampling.top_k:
        inside = above.sum(-1) < sampling.top_k
        kth = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth.minimum(own), -math.inf)
    mass = (scores.softmax(-1) * above).sum(-1)
    if sampling.top_p < 1:
        least = mass * math.exp(-shift)
        inside &= least / (least + 1 - mass) < sampling.top_p
    if sampling.min_p:
        least = scores.amax(-1) + math.log(sampling.min_p) - shift
        inside &= own.squeeze(-1) >= least
    return inside & own.squeeze(-1).isfinite()


def _with_token(logits, probs, tokens, temperature: float):
    """probs [n, V] with a token that stands outside put back at its logit's weight."""
    scores = logits.double() / temperature
    best = probs.argmax(-1, keepdim=True)
    at = tokens.unsqueeze(-1)
    weight = (scores.gather(-1, at) - scores.gather(-1, best)).exp() * probs.gather(-1, best)
    widened = probs.scatter(-1, at, weight)
    return widened / widened.sum(-1, keepdim=True)


def audit_uniforms(seed: int, question_id, choice: int, turn: int, num: int):
    """The v of a turn, [2, num]: the same in every file, so that equal answers get equal verdicts.

    Keyed apart from sampling.seed_of: numbers that drew the tokens would tell nothing about them.
    """
    digest = hashlib.sha256(f"audit/{seed}/{question_id}/{choice}/{turn}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(2, num, dtype=torch.float64, generator=generator)
