"""The program that joins a command's stdin and stdout to a Unix socket, on the host.

Used where sshd forwards no Unix sockets, or where only root may open the socket. It needs nothing
but the stdlib, says "+" once it is connected, passes half-closes on in both directions, and ends
as soon as either end is wholly gone, so that nothing stays behind on the host.
"""

from __future__ import annotations

import shlex

PROGRAM = """\
import os, select, socket, sys, threading
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
except OSError as e:
    sys.exit(e.strerror)
os.write(1, b"+")
def up():
    try:
        while True:
            d = os.read(0, 262144)
            if not d:
                break
            s.sendall(d)
        s.shutdown(socket.SHUT_WR)
    except OSError:
        pass
threading.Thread(target=up, daemon=True).start()
p = select.poll()
p.register(s, select.POLLIN)
p.register(1, 0)
try:
    while True:
        ready = dict(p.poll())
        if s.fileno() in ready:
            d = s.recv(262144)
            if not d:
                break
            while d:
                d = d[os.write(1, d):]
        elif 1 in ready:
            break
except OSError:
    pass
os._exit(0)
"""


def relay_command(path: str, sudo: bool) -> str:
    """The shell command that relays to the socket at `path`, through password-less sudo or not."""
    command = f"python3 -I -S -c {shlex.quote(PROGRAM)} {shlex.quote(path)}"
    return f"exec sudo -n {command}" if sudo else f"exec {command}"
