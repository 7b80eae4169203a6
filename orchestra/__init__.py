"""orchestra: today's whole compose language on many Linux hosts, on our own container runtime."""

__version__ = "0.1.0"
