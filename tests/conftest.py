"""Settings of all tests: two threads, so that runs on shared cores stay comparable."""

import torch

torch.set_num_threads(2)
