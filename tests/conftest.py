"""Settings of all tests, and of the programs that they start."""

import os
import signal

# Before torch loads: threads that wait for work give way to the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

# Two unless another number is asked for, so that runs on shared cores stay comparable.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))

# A shell has its background jobs ignore SIGINT, nohup SIGHUP: the programs would ignore them, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
