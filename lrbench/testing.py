"""Conformance checks for plugin authors: `from lrbench.testing import check_reducer`."""

from lrbench.reducers.testing import CheckResult, check_reducer

__all__ = ["CheckResult", "check_reducer"]
