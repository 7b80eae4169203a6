"""One node: reconcile loop, supervision, events, state on disk."""
