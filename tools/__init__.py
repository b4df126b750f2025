"""Programs that users run: python -m tools.NAME --help."""
