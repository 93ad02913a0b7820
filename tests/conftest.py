"""What holds for every test: the same examples on every run, and no window on any screen."""

import sys

import matplotlib
from hypothesis import settings

matplotlib.use("agg")

# Derandomised: a test that fails on one machine fails on all of them. No deadline: no test times.
settings.register_profile("gptheory", derandomize=True, deadline=None)
settings.load_profile("gptheory")

# It replaces parts of torch, and so has a process of its own: make test-devices.
collect_ignore = [] if "pretend_device" in sys.modules else ["house/test_pretend_device.py"]
