"""The guestbook's worker: reports the visit counter every few seconds."""

import socket
import time

while True:
    with socket.create_connection(("redis", 6379), timeout=5) as connection:
        connection.sendall(b"*2\r\n$3\r\nGET\r\n$6\r\nvisits\r\n")
        answer = connection.makefile("r")
        answer.readline()
        print(f"visits so far: {answer.readline().strip()}")
    time.sleep(5)
