"""Measurements beside a peer in the same run; `python -m bench` prints and writes build/bench.json."""
