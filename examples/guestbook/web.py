"""The guestbook's page: counts a visit in redis and says who served whom.

`web.py --check` is the health check: it asks the running server whether redis answers. Only the
standard library is used; redis is spoken to in its own line protocol.
"""

import hashlib
import os
import signal
import socket
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080


def redis(*words: str) -> str:
    """Send one command to redis and return the first line of its answer."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(w.encode())}\r\n{w}\r\n" for w in words)
    with socket.create_connection(("redis", 6379), timeout=3) as connection:
        connection.sendall(request.encode())
        return connection.makefile("r").readline().strip().lstrip(":+$")


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5  # seconds that a connection may be idle

    def do_GET(self) -> None:
        try:
            if self.path == "/healthz":
                self.answer(200, redis("PING") + "\n")
                return
            visits = redis("INCR", "visits")
        except OSError as error:
            self.answer(503, f"cannot reach redis: {error}\n")
            return
        with open("/run/secrets/signature", "rb") as secret:
            seal = hashlib.sha256(secret.read() + visits.encode()).hexdigest()[:12]
        self.answer(
            200,
            f"{os.environ.get('GREETING', 'Hello')}, visitor {visits}!\n"
            f"served by: {socket.gethostname()}\n"
            f"your address: {self.client_address[0]}\n"
            f"seal: {seal}\n",
        )

    def answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        if self.path != "/healthz":
            print(f"{self.client_address[0]} {format % args}", flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = False  # closing waits for the answers under way
    request_queue_size = 128


if __name__ == "__main__":
    if "--check" in sys.argv:
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=4).read()
    else:
        server = Server(("", PORT), Page)
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"{socket.gethostname()} serves on port {PORT}", flush=True)
        server.serve_forever()
        server.server_close()
