"""The contestants of `python -m benchmarks throughput`, one process each; all but `ours` know nothing of us."""
