"""Compose text to model values. Pure; every error carries file, line and key."""
