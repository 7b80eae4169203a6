"""A cluster in one process and virtual time: agents, hosts, faults and what must always hold."""
