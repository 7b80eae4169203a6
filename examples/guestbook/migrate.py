"""The guestbook's one-shot migration: `web` starts only after it ended with exit code 0."""

import socket

with socket.create_connection(("redis", 6379), timeout=5) as connection:
    connection.sendall(b"*3\r\n$5\r\nSETNX\r\n$6\r\nvisits\r\n$1\r\n0\r\n")
    created = connection.makefile("r").readline().strip()
print("visit counter created" if created == ":1" else "visit counter was there already")
