"""Processes of a run: how they meet, communicate, detect failures, and end."""
