"""The parts of tools/check_gpu.py: what is checked, and what is timed."""
