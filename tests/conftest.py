"""Settings of all tests: two threads, so that runs on shared cores stay comparable."""

import os

# Before torch loads: threads that wait for work give way to the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

torch.set_num_threads(2)
