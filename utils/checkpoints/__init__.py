"""Write checkpoints, resume from them, and read untrusted files safely."""
