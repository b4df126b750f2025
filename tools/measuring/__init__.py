"""What programs that measure or estimate share: updates, kernels, sides in turn, needs."""
