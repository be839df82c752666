"""Decides what to train, compare and tell: `python -m study`."""
