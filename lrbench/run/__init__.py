"""Runs a suite: scores what has no row yet, and writes it."""
