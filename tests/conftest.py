"""What holds for every test: the same examples on every run, and no window on any screen."""

import matplotlib
from hypothesis import settings

matplotlib.use("agg")

# Derandomised: a test that fails on one machine fails on all of them. No deadline: no test times.
settings.register_profile("gptheory", derandomize=True, deadline=None)
settings.load_profile("gptheory")
