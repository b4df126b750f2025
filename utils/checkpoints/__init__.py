"""What a run writes and goes on from, and how files from anybody are read."""
