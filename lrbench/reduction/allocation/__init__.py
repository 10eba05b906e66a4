"""Allocates a parameter budget of the whole model among its weights."""
