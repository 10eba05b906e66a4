"""The sweep engine: a sweep over all layers for the price of a few evaluations.

`queries` says what is asked, `trees` shares repeated tokens, `batches` lays them out, `passes` runs parts of the model,
`frontier` keeps hidden states between cells, `replay` and `memos` what a block computes apart from its edited matrices,
`trim` leaves out what nobody asks, `scoring` turns states into answers, `selfcheck` tests all that against the plain
model before it is trusted, and `engine` puts them together.
"""

from lrbench.evaluation.sweep.engine import SweepEngine

__all__ = ["SweepEngine"]
