"""Every attribute of a service: what it becomes, or the words that refuse it.

The tables are complete: a test holds them against the schema, so that no attribute is ignored.
"""

from typing import Any

import pytest
from attrs import evolve

from compose.cases import document, errors, loaded, service
from orchestra.compose.schema import schema
from orchestra.compose.support import REFUSED, WARNED
from orchestra.model.service import (
    Dependency,
    DependencyCondition,
    FileReference,
    Healthcheck,
    Mount,
    MountType,
    Placement,
    Port,
    PortMode,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceNetwork,
    Ulimit,
    UpdateConfig,
    UpdateOrder,
)

REST = """  db: {image: y, healthcheck: {test: a}}
  job: {image: y}
networks: {front: {}, back: {}}
volumes: {data: {}}
configs: {app: {content: c}}
secrets: {key: {environment: KEY}}
"""
ENV = {"KEY": "k", "MINE": "mine"}
FRONT = ServiceNetwork("front")
DATA = Mount(MountType.VOLUME, "/d", "data")
BIND = Mount(MountType.BIND, "/d", "/a", create_host_path=True)
TMPFS = Mount(MountType.TMPFS, "/t")
TEST = ("CMD-SHELL", "a")

# attribute -> lines -> the fields of the model that they set.
HONOURED: dict[str, dict[str, dict[str, Any]]] = {
    "cap_add": {"cap_add: [NET_ADMIN]": {"cap_add": ("NET_ADMIN",)}},
    "cap_drop": {"cap_drop: [ALL]": {"cap_drop": ("ALL",)}},
    "command": {
        "command: run 'a b' c": {"command": ("run", "a b", "c")},
        "command: [run, a b]": {"command": ("run", "a b")},
        "command: []": {"command": ()},
        "command:": {"command": None},
    },
    "configs": {
        "configs: [app]": {"configs": (FileReference("config/app", "/app"),)},
        "configs: [{source: app, target: /etc/a, uid: '5', gid: '6', mode: 0400}]": {
            "configs": (FileReference("config/app", "/etc/a", "5", "6", 0o400),)
        },
    },
    "container_name": {"container_name: one": {"container_name": "one"}},
    "cpus": {"cpus: 0.5": {"limits": Resources(cpus=0.5)}},
    "depends_on": {
        "depends_on: [db]": {"depends_on": (Dependency("db"),)},
        "depends_on: {db: {condition: service_healthy, required: false}}": {
            "depends_on": (Dependency("db", DependencyCondition.HEALTHY, False),)
        },
        "depends_on: {job: {condition: service_completed_successfully}}": {
            "depends_on": (Dependency("job", DependencyCondition.COMPLETED),)
        },
    },
    "deploy": {
        "deploy: {replicas: 3}": {"replicas": 3},
        "deploy: {replicas: 0}": {"replicas": 0},
        "deploy: {mode: global}": {"mode": ServiceMode.GLOBAL},
        "deploy: {mode: replicated-job}": {"mode": ServiceMode.REPLICATED_JOB},
        "deploy: {endpoint_mode: dnsrr}": {"endpoint_mode": "dnsrr"},
        "deploy: {labels: [a=b]}": {"deploy_labels": {"a": "b"}},
        "deploy: {placement: {constraints: ['node.labels.a == b'], max_replicas_per_node: 2, "
        "preferences: [{spread: node.labels.zone}]}}": {
            "placement": Placement(("node.labels.a == b",), ("spread=node.labels.zone",), 2)
        },
        "deploy: {resources: {limits: {cpus: '1.5', memory: 64m, pids: 9}}}": {
            "limits": Resources(1.5, 64 << 20, 9)
        },
        "deploy: {resources: {reservations: {cpus: 0.1, memory: 1g}}}": {
            "reservations": Resources(0.1, 1 << 30)
        },
        "deploy: {restart_policy: {}}": {"restart": RestartPolicy(RestartCondition.ANY, 5.0)},
        "deploy: {restart_policy: {condition: on-failure, delay: 1s, max_attempts: 3, "
        "window: 1m}}\nrestart: always": {
            "restart": RestartPolicy(RestartCondition.ON_FAILURE, 1.0, 3, 60.0)
        },
        "deploy: {update_config: {}}": {"update": UpdateConfig(order=UpdateOrder.STOP_FIRST)},
        "deploy: {update_config: {parallelism: 2, delay: 1s, order: start-first, monitor: 2s, "
        "failure_action: pause}}": {
            "update": UpdateConfig(2, 1.0, "pause", 2.0, order=UpdateOrder.START_FIRST)
        },
    },
    "dns": {
        "dns: 9.9.9.9": {"dns": ("9.9.9.9",)},
        "dns: [9.9.9.9, 1.1.1.1]": {"dns": ("9.9.9.9", "1.1.1.1")},
    },
    "dns_opt": {"dns_opt: ['ndots:1']": {"dns_opt": ("ndots:1",)}},
    "dns_search": {"dns_search: a.b": {"dns_search": ("a.b",)}},
    "domainname": {"domainname: a.b": {"domainname": "a.b"}},
    "entrypoint": {
        "entrypoint: /init a": {"entrypoint": ("/init", "a")},
        "entrypoint: []": {"entrypoint": ()},
    },
    "env_file": {
        "env_file: a.env": {"environment": {"A": "1", "B": "2"}},
        "env_file: [a.env, b.env]": {"environment": {"A": "1", "B": "3"}},
        "env_file: [{path: no.env, required: false}]": {},
        "env_file: [{path: raw.env, format: raw}]": {"environment": {"R": "'$A'"}},
    },
    "environment": {
        "environment: {A: 1, B: true, C: }": {"environment": {"A": "1", "B": "true"}},
        "environment: [A=1, B=, MINE, ABSENT]": {
            "environment": {"A": "1", "B": "", "MINE": "mine"}
        },
        "environment: {A: $$HOME}": {"environment": {"A": "$HOME"}},
    },
    "expose": {"expose: [80, '81/udp']": {"expose": ("80", "81/udp")}},
    "extends": {
        "extends: db": {"healthcheck": Healthcheck(TEST)},
        "extends: {service: db}\nhealthcheck: {disable: true}": {
            "healthcheck": Healthcheck(("NONE",))
        },
    },
    "extra_hosts": {
        "extra_hosts: ['a:1.2.3.4', 'b=::1']": {"extra_hosts": ("a:1.2.3.4", "b:::1")},
        "extra_hosts: {a: 1.2.3.4}": {"extra_hosts": ("a:1.2.3.4",)},
    },
    "group_add": {"group_add: [5, adm]": {"group_add": ("5", "adm")}},
    "healthcheck": {
        "healthcheck: {test: a}": {"healthcheck": Healthcheck(TEST)},
        "healthcheck: {test: [CMD, a, b], interval: 1m30s, timeout: 500ms, retries: 5, "
        "start_period: 2s, start_interval: 1s}": {
            "healthcheck": Healthcheck(("CMD", "a", "b"), 90.0, 0.5, 5, 2.0, 1.0)
        },
        "healthcheck: {test: [NONE]}": {"healthcheck": Healthcheck(("NONE",))},
        "healthcheck: {disable: true}": {"healthcheck": Healthcheck(("NONE",))},
        "healthcheck: {test: a, interval: 0s}": {"healthcheck": Healthcheck(TEST)},
    },
    "hostname": {"hostname: h": {"hostname": "h"}},
    "image": {"image: a/b:1": {"image": "a/b:1"}},
    "init": {"init: true": {"init": True}},
    "label_file": {"label_file: a.env": {"labels": {"A": "1", "B": "2"}}},
    "labels": {
        "labels: {a: 1, b: }": {"labels": {"a": "1", "b": ""}},
        "labels: [a=1, b]": {"labels": {"a": "1", "b": ""}},
    },
    "mem_limit": {"mem_limit: 1.5g": {"limits": Resources(memory=3 << 29)}},
    "mem_reservation": {"mem_reservation: 4096": {"reservations": Resources(memory=4096)}},
    "network_mode": {
        "network_mode: none": {"network_mode": "none", "networks": ()},
        "network_mode: host": {"network_mode": "host", "networks": ()},
    },
    "networks": {
        "networks: [front, back]": {"networks": (FRONT, ServiceNetwork("back"))},
        "networks: {front: {aliases: [a, b], ipv4_address: 10.0.0.9, priority: 5}}": {
            "networks": (ServiceNetwork("front", ("a", "b"), "10.0.0.9", priority=5),)
        },
        "networks: {front: }": {"networks": (FRONT,)},
    },
    "pids_limit": {
        "pids_limit: 50": {"limits": Resources(pids=50)},
        "pids_limit: -1": {},
    },
    "ports": {
        "ports: [80]": {"ports": (Port(80),)},
        "ports: ['8080:80']": {"ports": (Port(80, 8080),)},
        "ports: ['127.0.0.1:8080:80/udp']": {
            "ports": (Port(80, 8080, "udp", host_ip="127.0.0.1"),)
        },
        "ports: ['[::1]:8080:80']": {"ports": (Port(80, 8080, host_ip="::1"),)},
        "ports: ['8080-8081:80-81']": {"ports": (Port(80, 8080), Port(81, 8081))},
        "ports: ['80-81']": {"ports": (Port(80), Port(81))},
        "ports: [{target: 80, published: '8080', protocol: udp, mode: host, name: web, "
        "app_protocol: http, host_ip: 127.0.0.1}]": {
            "ports": (Port(80, 8080, "udp", PortMode.HOST, "127.0.0.1", "web", "http"),)
        },
    },
    "privileged": {"privileged: true": {"privileged": True}},
    "profiles": {"profiles: [debug]": {"profiles": ("debug",)}},
    "pull_policy": {"pull_policy: missing": {}, "pull_policy: never": {}},
    "read_only": {"read_only: true": {"read_only": True}},
    "restart": {
        "restart: 'no'": {},
        "restart: no": {},
        "restart: always": {"restart": RestartPolicy(RestartCondition.ANY)},
        "restart: unless-stopped": {"restart": RestartPolicy(RestartCondition.UNLESS_STOPPED)},
        "restart: on-failure": {"restart": RestartPolicy(RestartCondition.ON_FAILURE)},
        "restart: on-failure:3": {
            "restart": RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=3)
        },
    },
    "scale": {"scale: 2": {"replicas": 2}},
    "secrets": {
        "secrets: [key]": {"secrets": (FileReference("secret/key", "/run/secrets/key"),)},
        "secrets: [{source: key, target: k, mode: 0440}]": {
            "secrets": (FileReference("secret/key", "/run/secrets/k", mode=0o440),)
        },
    },
    "security_opt": {
        "security_opt: ['no-new-privileges:true']": {"security_opt": ("no-new-privileges:true",)},
        "security_opt: [no-new-privileges]": {"security_opt": ("no-new-privileges:true",)},
        "security_opt: ['seccomp:unconfined']": {"security_opt": ("seccomp=unconfined",)},
    },
    "shm_size": {"shm_size: 128m": {"shm_size": 128 << 20}},
    "stdin_open": {"stdin_open: true": {"stdin_open": True}},
    "stop_grace_period": {"stop_grace_period: 1m30s": {"stop_grace_period": 90.0}},
    "stop_signal": {"stop_signal: SIGQUIT": {"stop_signal": "SIGQUIT"}},
    "sysctls": {
        "sysctls: {net.core.somaxconn: 1024}": {"sysctls": {"net.core.somaxconn": "1024"}},
        "sysctls: [net.core.somaxconn=1024]": {"sysctls": {"net.core.somaxconn": "1024"}},
    },
    "tmpfs": {
        "tmpfs: /t": {"mounts": (TMPFS,)},
        "tmpfs: ['/t:size=64m,mode=1777,ro']": {
            "mounts": (evolve(TMPFS, tmpfs_size=64 << 20, tmpfs_mode=0o1777, read_only=True),)
        },
    },
    "tty": {"tty: true": {"tty": True}},
    "ulimits": {
        "ulimits: {nofile: 1024, core: {soft: 1, hard: -1}}": {
            "ulimits": {"nofile": Ulimit(1024, 1024), "core": Ulimit(1, -1)}
        }
    },
    "user": {"user: '1000:1000'": {"user": "1000:1000"}},
    "volumes": {
        "volumes: ['data:/d']": {"mounts": (DATA,)},
        "volumes: ['data:/d:ro,nocopy']": {"mounts": (evolve(DATA, read_only=True, no_copy=True),)},
        "volumes: [/d]": {"mounts": (evolve(DATA, source=""),)},
        "volumes: ['/a:/d']": {"mounts": (BIND,)},
        "volumes: ['/a:/d:ro,rslave']": {
            "mounts": (evolve(BIND, read_only=True, propagation="rslave"),)
        },
        "volumes: [{type: volume, source: data, target: /d, read_only: true, "
        "volume: {nocopy: true, subpath: s}}]": {
            "mounts": (evolve(DATA, read_only=True, no_copy=True, subpath="s"),)
        },
        "volumes: [{type: bind, source: /a, target: /d, bind: {create_host_path: false, "
        "propagation: shared}}]": {
            "mounts": (evolve(BIND, create_host_path=False, propagation="shared"),)
        },
        "volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}]": {
            "mounts": (evolve(TMPFS, tmpfs_size=1 << 20, tmpfs_mode=0o700),)
        },
    },
    "working_dir": {"working_dir: /w": {"working_dir": "/w"}},
}
FILES = {"a.env": "A=1\nB=2\n", "b.env": "B=3\n", "raw.env": "R='$A'\n"}
CASES = [(lines, fields) for rows in HONOURED.values() for lines, fields in rows.items()]


def test_every_attribute_of_the_language_is_honoured_refused_or_warned_about() -> None:
    known = set(schema()["definitions"]["service"]["properties"])
    assert HONOURED.keys() | REFUSED.keys() | WARNED.keys() == known
    assert len(HONOURED) + len(REFUSED) + len(WARNED) == len(known)


@pytest.mark.parametrize(("lines", "fields"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_an_attribute_sets_its_fields_and_no_other(lines: str, fields: dict[str, Any]) -> None:
    text = document(lines, REST)
    if lines.startswith("image"):
        text = text.replace("    image: x\n", "", 1)
    files = {"compose.yaml": text, **FILES}
    web = loaded(files, ENV, profiles=["*"]).stack.services["web"]
    plain = service("", ENV, REST)
    changed = {key for key in fields if fields[key] != getattr(plain, key)}
    assert changed == set(fields) or not fields or lines.startswith(("restart", "command:"))
    assert web == evolve(plain, **fields)


REFUSED_LINES = {
    "build": "build: .",
    "blkio_config": "blkio_config: {weight: 10}",
    "cgroup": "cgroup: host",
    "cpu_count": "cpu_count: 2",
    "cpu_percent": "cpu_percent: 50",
    "credential_spec": "credential_spec: {file: a}",
    "device_cgroup_rules": "device_cgroup_rules: ['c 1:3 mr']",
    "devices": "devices: [/dev/null]",
    "external_links": "external_links: [a]",
    "gpus": "gpus: all",
    "links": "links: [db]",
    "logging": "logging: {driver: none}",
    "models": "models: [m]",
    "oom_kill_disable": "oom_kill_disable: true",
    "post_start": "post_start: [{command: a}]",
    "pre_start": "pre_start: [{command: a, image: x}]",
    "pre_stop": "pre_stop: [{command: a}]",
    "provider": "provider: {type: a}",
    "storage_opt": "storage_opt: {size: 1g}",
    "use_api_socket": "use_api_socket: true",
    "volumes_from": "volumes_from: [db]",
    "annotations": "annotations: {a: b}",
    "ipc": "ipc: host",
    "pid": "pid: host",
    **{
        key: f"{key}: 5"
        for key in ("cpu_shares", "cpu_period", "cpu_quota", "cpu_rt_period", "cpu_rt_runtime",
                    "mem_swappiness", "memswap_limit", "oom_score_adj")
    },
    **{
        key: f"{key}: a"
        for key in ("cgroup_parent", "cpuset", "isolation", "mac_address", "platform", "runtime",
                    "userns_mode", "uts")
    },
    "pull_refresh_after": "pull_refresh_after: 1h",
}  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_honoured_is_refused_by_name_with_what_to_do(key: str) -> None:
    found = errors(document(REFUSED_LINES[key], REST + "models: {m: {model: a}}\n"), ENV)
    assert f"compose.yaml:5:5: services.web.{key}: is not supported: {REFUSED[key]}" in found


@pytest.mark.parametrize("key", WARNED)
def test_what_says_nothing_to_a_cluster_is_warned_about(key: str) -> None:
    lines = {"attach": "attach: false", "develop": "develop: {watch: []}"}[key]
    [warning] = loaded(document(lines)).warnings
    assert warning == f"/srv/demo/compose.yaml:5: services.web.{key}: has no effect: {WARNED[key]}"


# lines -> key and message; the line of the key is 5, or 6 where the text has more lines
WRONG = {
    "depends_on: {db: {condition: service_started, restart: true}}": (
        "depends_on.db.restart",
        "is not supported yet; remove it",
    ),
    "deploy: {mode: often}": ("deploy.mode", "must be one of replicated, global, "),
    "deploy: {endpoint_mode: x}": ("deploy.endpoint_mode", "must be one of vip, dnsrr, not 'x'"),
    "deploy: {replicas: -1}": ("deploy.replicas", "must be at least 0, not -1"),
    "deploy: {rollback_config: {}}": ("", ""),
    "deploy: {rollback_config: {parallelism: 1}}": (
        "deploy.rollback_config",
        "is not supported yet; remove it",
    ),
    "deploy: {update_config: {failure_action: rollback}}": (
        "deploy.update_config.failure_action",
        "'rollback' is not supported yet; pause is",
    ),
    "deploy: {update_config: {max_failure_ratio: 0.5}}": (
        "deploy.update_config.max_failure_ratio",
        "is not supported yet; remove it",
    ),
    "deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}": (
        "deploy.resources.reservations.devices",
        "is not supported yet; remove it",
    ),
    "deploy: {resources: {reservations: {pids: 5}}}": (
        "deploy.resources.reservations.pids",
        "is not supported yet; remove it",
    ),
    "deploy: {resources: {limits: {cpus: many}}}": ("deploy.resources.limits.cpus", "'many'"),
    "deploy: {mode: replicated-job}\nrestart: always": ("restart", "a job ends"),
    "mem_limit: -1": ("mem_limit", "must be at least 0, not -1"),
    "cpus: -2": ("cpus", "must be at least 0, not -2"),
    "shm_size: -1": ("shm_size", "must be at least 0, not -1"),
    "pids_limit: -5": ("pids_limit", "must be at least -1 (no limit), not -5"),
    "deploy: {resources: {limits: {cpus: '-1'}}}": (
        "deploy.resources.limits.cpus",
        "must be at least 0, not -1",
    ),
    "deploy: {resources: {limits: {cpus: nan}}}": (
        "deploy.resources.limits.cpus",
        "must be at least 0, not nan",
    ),
    "deploy: {resources: {limits: {memory: '-1'}}}": (
        "deploy.resources.limits.memory",
        "must be at least 0, not -1",
    ),
    "hostname: a b": ("hostname", "'a b' is no host name"),
    "hostname: -x": ("hostname", "'-x' is no host name"),
    "working_dir: rel": ("working_dir", "'rel' must be an absolute path"),
    "stop_grace_period: -5s": ("stop_grace_period", "a duration cannot be negative: -5s"),
    "environment: {'': c}": ("environment.", "'' is no name of a variable"),
    "environment: {A=B: c}": ("environment.A=B", "'A=B' is no name of a variable"),
    "dns: [nohost]": ("dns[0]", "'nohost' is no address"),
    "extra_hosts: ['a:nohost']": ("extra_hosts[0]", "'nohost' is no address"),
    "extra_hosts: ['a b:1.2.3.4']": ("extra_hosts[0]", "'a b' is no host name"),
    "ulimits: {nofile: {soft: 9, hard: 3}}": ("ulimits.nofile", "soft is 9, more than hard"),
    "ulimits: {nofile: -5}": ("ulimits.nofile", "must be at least -1 (no limit), not -5"),
    "networks: {front: {ipv4_address: x}}": ("networks.front.ipv4_address", "'x' is no address"),
    "networks: {front: {aliases: [a b]}}": ("networks.front.aliases[0]", "'a b' is no host name"),
    "configs: [{source: app, uid: root}]": ("configs[0].uid", "'root' must be a number"),
    "configs: [{source: app, mode: 99999}]": ("configs[0].mode", "99999 is no mode"),
    "configs: [{source: app, target: ../x}]": ("configs", "the target '../x' may not go up"),
    "volumes: ['/a:/']": ("volumes[0]", "the root itself cannot be a mount"),
    "volumes: [{type: tmpfs, target: /t, tmpfs: {size: -1}}]": (
        "volumes[0].tmpfs.size",
        "must be at least 0, not -1",
    ),
    "tmpfs: t": ("tmpfs[0]", "'t' must be an absolute path"),
    "tmpfs: ['/t:size=-1']": ("tmpfs[0]", "must be at least 0, not -1"),
    "healthcheck: {test: a, retries: -1}": ("healthcheck.retries", "must be at least 0, not -1"),
    "healthcheck: {test: a, interval: -5s}": ("healthcheck.interval", "cannot be negative: -5s"),
    "deploy: {restart_policy: {delay: -1s}}": ("deploy.restart_policy.delay", "cannot be negative"),
    "deploy: {placement: {constraints: [nonsense]}}": (
        "deploy.placement.constraints[0]",
        "'nonsense' is no constraint; write KEY == VALUE or KEY != VALUE",
    ),
    "restart: sometimes": ("restart", "must be one of no, always, on-failure, unless-stopped"),
    "restart: always:3": ("restart", "'always:3' is not on-failure[:N]"),
    "pull_policy: always": ("pull_policy", "images come from the cluster's store; remove it"),
    "network_mode: bridge": ("network_mode", "'bridge' is not supported yet; use networks"),
    "network_mode: service:db": ("network_mode", "'service:db' is not supported yet"),
    "networks: {front: {ipv6_address: 'fd::1'}}": ("networks.front.ipv6_address", "not supported"),
    "networks: {front: {mac_address: 'a'}}": ("networks.front.mac_address", "not supported"),
    "networks: {front: {driver_opts: {a: b}}}": ("networks.front.driver_opts", "not supported"),
    "ports: ['8000-8010:80']": ("ports[0]", "a choice of published ports (8000-8010)"),
    "ports: [{target: 70000}]": ("ports[0]", "70000 is no port within 1-65535"),
    "ports: [{target: 80, published: x}]": ("ports[0]", "'x' is no port within 1-65535"),
    "ports: [{target: 80, mode: both}]": ("ports[0].mode", "must be one of ingress, host"),
    "volumes: [{type: image, source: x, target: /a}]": ("volumes[0].type", "'image' is not"),
    "volumes: [{type: tmpfs, source: x, target: /a}]": ("volumes[0].source", "has no source"),
    "volumes: ['data:d']": ("volumes[0]", "the target 'd' must be an absolute path"),
    "volumes: ['d:/d']": ("volumes[0]", "path; a volume's name has two characters or more"),
    "volumes: ['/a:/d:z']": ("volumes[0].bind.selinux", "is not supported yet; remove it"),
    "volumes: [{type: bind, source: /a, target: /d, bind: {recursive: disabled}}]": (
        "volumes[0].bind.recursive",
        "is not supported yet; remove it",
    ),
    "volumes: [{type: volume, target: /d, consistency: cached}]": (
        "volumes[0].consistency",
        "is not supported yet; remove it",
    ),
    "tmpfs: '/t:huge=1'": ("tmpfs[0]", "the option 'huge' is not supported yet"),
    "healthcheck: {interval: 5s}": ("healthcheck", "healthcheck without a test"),
    "healthcheck: {test: [CMD]}": ("healthcheck.test", "CMD needs a command after it"),
    "security_opt: ['apparmor:x']": ("security_opt[0]", "'apparmor:x' is not supported yet"),
    "extra_hosts: ['a:host-gateway']": ("extra_hosts[0]", "host-gateway is not supported yet"),
    "env_file: no.env": ("env_file[0]", "env file no.env not found"),
    "label_file: no.env": ("label_file[0]", "cannot read label file no.env"),
}


@pytest.mark.parametrize("lines", WRONG)
def test_a_wrong_value_is_refused_at_its_line_and_key(lines: str) -> None:
    key, message = WRONG[lines]
    if not key:
        assert loaded(document(lines, REST), ENV).stack.services
        return
    found = errors(document(lines, REST), ENV)
    number = 5 + [line.partition(":")[0] for line in lines.splitlines()].index(
        key.partition(".")[0].partition("[")[0]
    )
    [error] = [line for line in found if f": services.web.{key}: " in line]
    assert error.startswith(f"compose.yaml:{number}:") and message in error


TOP = {
    "networks: {front: {driver: macvlan}}": ("networks.front.driver", "'macvlan' is not"),
    "networks: {front: {enable_ipv6: true}}": ("networks.front.enable_ipv6", "not supported yet"),
    "networks: {front: {enable_ipv4: false}}": ("networks.front.enable_ipv4", "without IPv4"),
    "networks: {front: {driver_opts: {a: b}}}": ("networks.front.driver_opts", "not supported"),
    "networks: {front: {ipam: {driver: x}}}": ("networks.front.ipam.driver", "'x' is not"),
    "networks: {front: {ipam: {config: [{subnet: 10.0.0.0/24, gateway: 10.0.0.1}]}}}": (
        "networks.front.ipam.config[0].gateway",
        "is not supported yet",
    ),
    "volumes: {data: {driver: nfs}}": ("volumes.data.driver", "'nfs' is not supported yet"),
    "volumes: {data: {driver_opts: {type: nfs}}}": ("volumes.data.driver_opts", "not supported"),
    "configs: {app: {file: no}}": ("configs.app.file", "cannot read no"),
    "configs: {app: {external: true}}": ("configs.app.external", "external configs are not"),
    "configs: {app: {environment: NO}}": ("configs.app.environment", "variable NO is not set"),
    "configs: {app: {}}": ("configs.app", "needs file or content or environment, or external"),
    "secrets: {key: {file: a, environment: KEY}}": (
        "secrets.key.environment",
        "exclude each other",
    ),
    "secrets: {key: {external: true}}": ("secrets.key.external", "external secrets are not"),
}


@pytest.mark.parametrize("text", TOP)
def test_a_wrong_section_is_refused_at_its_line_and_key(text: str) -> None:
    key, message = TOP[text]
    uses = "networks: [front]\nvolumes: ['data:/d']\nconfigs: [app]\nsecrets: [key]\n"
    rest = [text if line.startswith(text.partition(":")[0]) else line for line in REST.splitlines()]
    found = errors(document(uses, "\n".join(rest) + "\n"), ENV)
    [error] = [line for line in found if f": {key}: " in line]
    assert error.startswith("compose.yaml:") and message in error


def test_sections_become_networks_volumes_and_files() -> None:
    rest = """networks:
  front: {internal: true, ipam: {config: [{subnet: 10.1.0.0/24}]}}
  back: {external: true, name: shared}
  unused: {}
volumes: {data: {name: mine}, other: {external: true}}
configs: {app: {file: a.env}, text: {content: "a ${MINE}"}}
secrets: {key: {environment: KEY}}
"""
    uses = "networks: [front, back]\nvolumes: ['data:/d', 'other:/o']\nconfigs: [app, text]\n"
    stack = loaded({"compose.yaml": document(uses + "secrets: [key]", rest), **FILES}, ENV).stack
    front, back = stack.networks["front"], stack.networks["back"]
    assert (front.name, front.internal, front.subnet) == ("demo_front", True, "10.1.0.0/24")
    assert (back.name, back.external) == ("shared", True)
    assert list(stack.networks) == ["front", "back"]
    assert [(v.name, v.external) for v in stack.volumes.values()] == [
        ("mine", False),
        ("other", True),
    ]
    assert {key: (file.content, file.secret) for key, file in stack.files.items()} == {
        "config/app": (b"A=1\nB=2\n", False),
        "config/text": (b"a mine", False),
        "secret/key": (b"k", True),
    }


SAME = [
    ("ports: ['8080:80']", "ports: [{target: 80, published: '8080'}]"),
    ("ports: ['8000-8001:80-81']", "ports: ['8000:80', '8001:81']"),
    ("ports: ['1.2.3.4:8080:80/udp']",
     "ports: [{target: 80, published: 8080, host_ip: 1.2.3.4, protocol: udp}]"),
    ("ports: ['[::1]:8080:80']", "ports: [{target: 80, published: '8080', host_ip: '::1'}]"),
    ("volumes: ['data:/d:ro']",
     "volumes: [{type: volume, source: data, target: /d, read_only: true}]"),
    ("volumes: ['/a:/d']", "volumes: [{type: bind, source: /a, target: /d}]"),
    ("volumes: [/d]", "volumes: [{type: volume, target: /d}]"),
    ("networks: [front]", "networks: {front: {}}"),
    ("depends_on: [db]", "depends_on: {db: {condition: service_started}}"),
    ("env_file: a.env", "env_file: [{path: ./a.env, required: true}]"),
    ("environment: [A=1, B]", "environment: {A: '1', B: }"),
    ("configs: [app]", "configs: [{source: app, target: /app}]"),
    ("secrets: [key]", "secrets: [{source: key, target: /run/secrets/key, mode: 0444}]"),
    ("healthcheck: {test: a b}", "healthcheck: {test: [CMD-SHELL, a b]}"),
    ("command: a 'b c'", "command: [a, b c]"),
    ("labels: [a=b]", "labels: {a: b}"),
    ("tmpfs: /t", "volumes: [{type: tmpfs, target: /t}]"),
    ("ulimits: {nofile: 5}", "ulimits: {nofile: {soft: 5, hard: 5}}"),
    ("dns: 1.1.1.1", "dns: [1.1.1.1]"),
    ("extra_hosts: ['a:1.2.3.4']", "extra_hosts: {a: 1.2.3.4}"),
]  # fmt: skip


@pytest.mark.parametrize(("short", "long"), SAME)
def test_short_and_long_forms_are_equal(short: str, long: str) -> None:
    stacks = [
        loaded({"compose.yaml": document(t, REST), **FILES}, ENV).stack for t in (short, long)
    ]
    assert stacks[0] == stacks[1]


def test_a_number_that_is_wanted_as_text_is_warned_about() -> None:
    lines = "environment: {V: 3.10, OK: 3.5, MODE: 0777, Q: '3.10'}\nlabels: {v: 1_000}"
    result = loaded(document(lines))
    assert result.stack.services["web"].environment == {
        "V": "3.1", "OK": "3.5", "MODE": "511", "Q": "3.10",
    }  # fmt: skip
    at = "/srv/demo/compose.yaml:"
    assert result.warnings == (
        f"{at}5: services.web.environment.V: 3.10 is a number and becomes 3.1; "
        "quote it to keep it as it is written",
        f"{at}5: services.web.environment.MODE: 0777 is a number and becomes 511; "
        "quote it to keep it as it is written",
        f"{at}6: services.web.labels.v: 1_000 is a number and becomes 1000; "
        "quote it to keep it as it is written",
    )
