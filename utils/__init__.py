"""Parts of a run besides method and data, grouped by purpose, and a few general helpers."""
