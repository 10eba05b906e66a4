"""Runs a suite: scores the cells without a row, and writes their rows."""
