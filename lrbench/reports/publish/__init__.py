"""Publishes runs as a static site: tables, figures, provenance of every row, downloads. Needs no server."""

from lrbench.reports.publish.site import publish

__all__ = ["publish"]
