"""Planted defects of single drafters; defects.py has the others, and what has to turn red."""

from model.dflash.head import BlockHead
from model.dspark.drafter import DSparkDrafter
from model.nasd.drafter import NASDSequence, NGramStore


def leaking_drafter(patch):
    """A cold method keeps its n-grams from question to question."""
    start = NASDSequence.start

    def leaking(self, ids):
        self.shared = getattr(self, "store", None) or NGramStore(self.n, self.min_context)
        start(self, ids)

    patch.setattr(NASDSequence, "start", leaking)


def kept_blocks(patch):
    """A block drafter keeps its block's own keys and values for the tokens that were accepted."""
    patch.setattr(BlockHead, "read", lambda self, states, count, longest: self.cache.advance(count))


def uncorrected_laws(patch):
    """DSpark says that its tokens were drawn from the backbone's laws, without the transition."""
    propose = DSparkDrafter.propose

    def uncorrected(self):
        draft = propose(self)
        if draft.probs is not None:
            logits = self.head.module.logits(self.head.draft(self.root, self.longest))
            draft.probs = self.sampler.warp(logits)[:, : draft.tokens.shape[1]]
        return draft

    patch.setattr(DSparkDrafter, "propose", uncorrected)
