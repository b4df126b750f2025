"""What a run is made of besides method and data, by purpose, and a few helpers of all."""
