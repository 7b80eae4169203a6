"""What should happen: pure functions from desired and observed state to plans."""
