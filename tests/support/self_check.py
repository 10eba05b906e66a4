"""The sweep engine's self-check, made once for each model configuration and set of requests in a process of tests.

It takes more than half of a tiny run, and `tests/evaluation` has the tests about it: there it is always made.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lrbench.evaluation.sweep import sweeper
from lrbench.evaluation.sweep.partial_forward import PartialForward
from lrbench.evaluation.sweep.selfcheck import choose, make_check
from lrbench.evaluation.sweep.sweeper import Sweeper

_PASSED: dict[object, dict[str, object]] = {}
_check = Sweeper._first_that_passes


def _once(self, modes):
    settings = {name: value for name, value in self._model.config.to_dict().items() if name != "_name_or_path"}
    requests = hash(tuple(query.key for query in self._queries))
    key = type(self._model), repr(settings), self._model.dtype, self._tokens, requests, tuple(modes)
    if key not in _PASSED:
        mode = _check(self, modes)
        if mode == "packed" and not self._fallbacks and not self._halvings:
            _PASSED[key] = {"replays": self.replays, "trim": self._passes.trim, "checked": self._checked}
        return mode
    passed = _PASSED[key]
    self._passes = PartialForward(self._model, self._blocks, resume=True)
    chosen = choose(self._queries, list(sweeper.grow(self._queries, self._order, self._costs())))
    self._passes.record(make_check(chosen, self._layout("packed"), self._model.device)[-1])
    self._passes.trim, self.replays, self._checked = passed["trim"], passed["replays"], dict(passed["checked"])
    return "packed"


@contextmanager
def self_check_once() -> Iterator[None]:
    """While this is open, a check that passed without a fallback is not made again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Sweeper, "_first_that_passes", _once)
        yield
