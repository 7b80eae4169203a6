"""Measurements beside a peer in one run; `python -m bench` prints and writes build/bench.json."""
