"""Train the rows of the paper's tables, and set our numbers beside the published ones."""
