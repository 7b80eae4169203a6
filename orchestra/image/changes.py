"""`--change` instructions: Dockerfile lines that change an image's configuration.

CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR
(what `docker import` takes), in the exec form (a JSON array) or the shell form, as the Dockerfile
reference has them; values are taken as they are, without substitution of variables. Pure: text and
a configuration to a configuration.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence

from attrs import evolve

from orchestra.model.container import ImageConfig
from orchestra.model.errors import Invalid
from orchestra.model.service import Healthcheck

_SHELL = ("/bin/sh", "-c")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_REALTIME = re.compile(r"SIGRTMIN\+([1-9]|1[0-5])|SIGRTMAX-([1-9]|1[0-4])", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def apply_changes(config: ImageConfig, changes: Sequence[str]) -> ImageConfig:
    """`config` after `changes`, in order. Invalid names the instruction and what is wrong."""
    for line in changes:
        word, _, rest = line.strip().partition(" ")
        change = _INSTRUCTIONS.get(word.upper())
        if change is None:
            known = ", ".join(_INSTRUCTIONS)
            raise Invalid(f"cannot apply change {line!r:.200}: {word!r} is none of {known}")
        if not rest.strip():
            raise Invalid(f"cannot apply change {line!r:.200}: {word.upper()} needs a value")
        try:
            config = change(config, rest.strip())
        except ValueError as error:
            raise Invalid(f"cannot apply change {line!r:.200}: {error}") from None
    return config


def _array(text: str) -> tuple[str, ...] | None:
    """The exec form's words; None where `text` is no JSON array (then it is the shell form)."""
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except ValueError:
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("a JSON array may hold strings only")
    return tuple(words)


def _command(config: ImageConfig, text: str) -> tuple[str, ...]:
    words = _array(text)
    return (*(config.shell or _SHELL), text) if words is None else words


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"quotes do not match ({error})") from None


def _pairs(text: str) -> dict[str, str]:
    """KEY=value words, or the old form `KEY rest of the line`."""
    first = text.split(None, 1)
    if "=" not in first[0]:
        if len(first) < 2:
            raise ValueError(f"{first[0]!r} has no value: write {first[0]}=...")
        return {first[0]: first[1]}
    pairs = {}
    for word in _words(text):
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ValueError(f"{word!r} is not KEY=value")
        pairs[key] = value
    return pairs


def _cmd(config: ImageConfig, text: str) -> ImageConfig:
    return evolve(config, cmd=_command(config, text))


def _entrypoint(config: ImageConfig, text: str) -> ImageConfig:
    return evolve(config, entrypoint=_command(config, text))


def _env(config: ImageConfig, text: str) -> ImageConfig:
    values = dict(item.partition("=")[::2] for item in config.env) | _pairs(text)
    return evolve(config, env=tuple(f"{key}={value}" for key, value in values.items()))


def _label(config: ImageConfig, text: str) -> ImageConfig:
    return evolve(config, labels={**config.labels, **_pairs(text)})


def _expose(config: ImageConfig, text: str) -> ImageConfig:
    ports = list(config.exposed_ports)
    for word in _words(text):
        match = _PORT.fullmatch(word)
        if match is None:
            raise ValueError(f"{word!r} is no port (80, 80/udp, 8000-8010/tcp)")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"{word!r} is no range of ports between 1 and 65535")
        protocol = (match[3] or "tcp").lower()
        ports += [f"{port}/{protocol}" for port in range(first, last + 1)]
    return evolve(config, exposed_ports=tuple(dict.fromkeys(ports)))


def _onbuild(config: ImageConfig, text: str) -> ImageConfig:
    word = text.split(None, 1)[0].upper()
    if word in ("FROM", "MAINTAINER", "ONBUILD"):
        raise ValueError(f"ONBUILD may not hold {word}")
    return evolve(config, onbuild=(*config.onbuild, text))


def _user(config: ImageConfig, text: str) -> ImageConfig:
    if len(text.split()) != 1:
        raise ValueError("USER takes one word, user or user:group")
    return evolve(config, user=text)


def _volume(config: ImageConfig, text: str) -> ImageConfig:
    paths = _array(text)
    if paths is None:
        paths = tuple(_words(text))
    for path in paths:
        if not path.startswith("/"):
            raise ValueError(f"volume {path!r} is no absolute path")
    return evolve(config, volumes=tuple(dict.fromkeys((*config.volumes, *paths))))


def _workdir(config: ImageConfig, text: str) -> ImageConfig:
    if not text.startswith("/"):
        text = f"{config.working_dir.rstrip('/')}/{text}"
    return evolve(config, working_dir=text)


def _stopsignal(config: ImageConfig, text: str) -> ImageConfig:
    name = text.upper()
    if name.isdigit():
        if not 1 <= int(name) <= 64:
            raise ValueError(f"{text!r} is no signal number (1 to 64)")
    else:
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name not in signal.Signals.__members__ and not _REALTIME.fullmatch(name):
            raise ValueError(f"{text!r} is no signal")
    return evolve(config, stop_signal=name)


def _healthcheck(config: ImageConfig, text: str) -> ImageConfig:
    options: dict[str, str] = {}
    while text.startswith("--"):
        option, _, text = text.partition(" ")
        key, equals, value = option[2:].partition("=")
        if not equals:
            raise ValueError(f"{option!r} has no value")
        options[key] = value
        text = text.strip()
    kind, _, rest = text.partition(" ")
    rest = rest.strip()
    match kind.upper():
        case "NONE":
            if rest or options:
                raise ValueError("HEALTHCHECK NONE takes nothing else")
            return evolve(config, healthcheck=Healthcheck(("NONE",)))
        case "CMD" if rest:
            words = _array(rest)
            test = ("CMD-SHELL", rest) if words is None else ("CMD", *words)
            return evolve(config, healthcheck=_with_options(Healthcheck(test), options))
        case _:
            raise ValueError("HEALTHCHECK wants CMD and a command, or NONE")


def _with_options(check: Healthcheck, options: Mapping[str, str]) -> Healthcheck:
    for key, value in options.items():
        if key == "retries":
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"--retries={value} is no number above 0")
            check = evolve(check, retries=int(value))
        elif key == "interval":
            check = evolve(check, interval=_seconds(value))
        elif key == "timeout":
            check = evolve(check, timeout=_seconds(value))
        elif key == "start-period":
            check = evolve(check, start_period=_seconds(value))
        elif key == "start-interval":
            check = evolve(check, start_interval=_seconds(value))
        else:
            raise ValueError(f"HEALTHCHECK has no option --{key}")
    return check


def _seconds(text: str) -> float:
    """A Go duration: "1m30s", "500ms"."""
    parts = _DURATION.findall(text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{text!r} is no duration (30s, 1m30s, 500ms)")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


_INSTRUCTIONS: Mapping[str, Callable[[ImageConfig, str], ImageConfig]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
