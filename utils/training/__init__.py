"""A run from its start to its last epoch: the loop, its figures, evaluation."""
