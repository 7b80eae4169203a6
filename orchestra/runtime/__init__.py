"""One node's containers: bundle, mounts, create, start, exec, attach, logs, stop."""
