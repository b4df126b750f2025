"""Measure updates, loading and training, against other programs, A B A B."""
