"""The contestants of `python -m benchmarks throughput`, one process each.

All but `ours` know nothing of us; `limit` takes from us only how to keep memory, and what a processor can.
"""
