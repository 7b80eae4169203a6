"""What orchestra makes of the language: which attributes are refused, and what to do instead.

`stack.py` reads every attribute of a service that is in neither table. docs/compose.md says the
same to users; tests hold the schema, these tables and that page against each other.
"""

from __future__ import annotations

# Attributes that say nothing to a cluster: allowed, with a warning.
WARNED = {
    "attach": "`orchestra up` shows no logs; `orchestra logs` does, of the services it is given",
    "develop": "there is no `watch`; `orchestra up` again applies what has changed",
}

_NAMESPACES = "containers have namespaces of their own; remove it"
_CPUS = "use cpus"
_MEMORY = "use mem_limit"
_DEVICES = "devices of a node are not given to containers yet; remove it"
_HOOKS = "use a service that ends, and depends_on with service_completed_successfully"
_WINDOWS = "this exists on Windows only; remove it"

# Attributes that are refused, and what to do instead.
REFUSED = {
    "annotations": "use labels",
    "blkio_config": "block I/O is not limited yet; remove it",
    "build": "images are not built yet: build it with another tool, then load it with "
    "`orchestra image load`, and name it with `image:`",
    "cgroup": _NAMESPACES,
    "cgroup_parent": "orchestra keeps containers in cgroups of its own; remove it",
    "cpu_count": f"{_WINDOWS}, or {_CPUS}",
    "cpu_percent": f"{_WINDOWS}, or {_CPUS}",
    "cpu_period": _CPUS,
    "cpu_quota": _CPUS,
    "cpu_rt_period": _CPUS,
    "cpu_rt_runtime": _CPUS,
    "cpu_shares": _CPUS,
    "cpuset": _CPUS,
    "credential_spec": _WINDOWS,
    "device_cgroup_rules": _DEVICES,
    "devices": _DEVICES,
    "external_links": "put both services on one network: they reach each other by name",
    "gpus": _DEVICES,
    "ipc": _NAMESPACES,
    "isolation": _WINDOWS,
    "links": "services on one network reach each other by name; remove it, or give the other one "
    "an alias with networks.NAME.aliases",
    "logging": "logs are kept on the node and read with `orchestra logs`; remove it",
    "mac_address": "addresses of links are chosen by the node; remove it",
    "mem_swappiness": _MEMORY,
    "memswap_limit": _MEMORY,
    "models": "AI models are not supported; remove it",
    "oom_kill_disable": _MEMORY,
    "oom_score_adj": _MEMORY,
    "pid": _NAMESPACES,
    "platform": "an image runs on nodes of its own platform; use a placement constraint on "
    "node.platform.arch",
    "post_start": _HOOKS,
    "pre_start": _HOOKS,
    "pre_stop": _HOOKS,
    "provider": "services provided by other programs are not supported; remove it",
    "pull_refresh_after": "images come from the cluster's store; remove it",
    "runtime": "orchestra runs containers itself; remove it",
    "storage_opt": "a container's disk is not limited yet; remove it",
    "use_api_socket": "the engine's socket is not given to containers; remove it",
    "userns_mode": "user namespaces are not used, ids inside are the host's; remove it",
    "uts": _NAMESPACES,
    "volumes_from": "name the volume in both services",
}

# What is honoured within the other mappings.
WITHIN = {
    "deploy": "mode endpoint_mode replicas labels update_config resources restart_policy placement",
    "update": "parallelism delay failure_action monitor order",
    "limits": "cpus memory pids",
    "reservations": "cpus memory",
    "service network": "aliases ipv4_address priority",
    "bind": "propagation create_host_path",
    "volume": "nocopy subpath",
    "tmpfs": "size mode",
    "mount": "type source target read_only bind volume tmpfs",
    "network": "name driver external internal attachable enable_ipv4 ipam labels",
    "ipam": "driver config",
    "subnet": "subnet",
    "top-level volume": "name driver external labels",
    "config": "name file content environment",
    "secret": "name file environment",
}
