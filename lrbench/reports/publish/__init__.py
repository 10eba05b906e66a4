"""Runs as a static site: tables, figures, every row's provenance, downloads. It needs no server and no network."""

from lrbench.reports.publish.site import publish

__all__ = ["publish"]
