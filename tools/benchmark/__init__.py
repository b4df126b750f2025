"""Measure updates, loading and training, in turn with other programs (A B A B)."""
