"""System calls and kernel files, no opinions."""
