"""Bundled suites: `lrbench run NAME` finds them here."""
