"""The sweep engine: a sweep over all layers for the price of a few evaluations.

`queries` holds the log-likelihood requests as tokens, `prefix_trees` merges their common prefixes, and `batches` packs
the trees into rows. `partial_forward` runs some of the model's blocks. `frontier` keeps the hidden states that enter
the first edited block; `block_replay` and `activation_cache` reuse what that block computes independently of the edit;
`last_block` computes only scored positions. `answers` turns hidden states into log-likelihoods. `selfcheck` compares
all of this with the plain model, and `engine` puts it together.
"""

from lrbench.evaluation.sweep.engine import SweepEngine

__all__ = ["SweepEngine"]
