"""Processes of a run: how they find, tell and wait for each other, and how they end."""
