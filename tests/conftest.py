"""Set before any test module imports torch or a hub client, and inherited by the ranks that tests start."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks share the cores; more threads each would only fight
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network
os.environ.setdefault("MPLBACKEND", "Agg")
