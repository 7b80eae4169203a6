"""The files of /etc that a container gets from us: hostname, hosts, resolv.conf. Pure.

On a network of ours the name server is always 127.0.0.11, as configurations made for Docker
expect; the node's resolver answers there. Without a network, or on the host's, the host's own
resolv.conf is passed on (resolv.conf(5)).
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from orchestra.model.container import Container, Endpoint
from orchestra.runtime.runtime import EtcFiles

NAMESERVER = "127.0.0.11"


@frozen
class ResolvConf:
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"nameserver {server}" for server in self.nameservers]
        if self.search:
            lines.append(f"search {' '.join(self.search)}")
        if self.options:
            lines.append(f"options {' '.join(self.options)}")
        return "".join(f"{line}\n" for line in lines)


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read what matters of a resolv.conf; later `search` and `options` lines replace earlier."""
    nameservers: list[str] = []
    words: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        key, *values = line.split("#")[0].split("; ")[0].split() or [""]
        if key == "nameserver" and values:
            nameservers.append(values[0])
        elif key in ("search", "options"):
            words[key] = tuple(values)
    return ResolvConf(tuple(nameservers), words.get("search", ()), words.get("options", ()))


def hostname_of(container: Container) -> str:
    return container.spec.hostname or container.id[:12]


def etc_files(
    container: Container, endpoints: Sequence[Endpoint], node: str, host: ResolvConf
) -> EtcFiles:
    """Return the three files; `node` is what "host-gateway" means, `host` the host's resolvers."""
    spec = container.spec
    search = tuple(s for s in spec.dns_search if s != ".") if spec.dns_search else host.search
    if endpoints:
        resolv = ResolvConf((NAMESERVER,), search, spec.dns_opt or ("ndots:0",))
    else:
        resolv = ResolvConf(spec.dns or host.nameservers, search, spec.dns_opt or host.options)
    hostname = hostname_of(container)
    return EtcFiles(
        hostname=hostname,
        hosts=_hosts(container, endpoints, hostname, node),
        resolv_conf=str(resolv),
    )


def _hosts(container: Container, endpoints: Sequence[Endpoint], hostname: str, node: str) -> str:
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    for entry in container.spec.extra_hosts:
        name, _, address = entry.replace("=", ":", 1).partition(":")
        lines.append(f"{node if address == 'host-gateway' else address.strip('[]')}\t{name}")
    domain = container.spec.domainname
    own = f"{hostname}.{domain} {hostname}" if domain else hostname
    lines += [f"{e.address}\t{own}" for e in endpoints]
    return "".join(f"{line}\n" for line in lines)
