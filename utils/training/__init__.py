"""A run from its start to its last epoch: the training loop, metrics, evaluation."""
