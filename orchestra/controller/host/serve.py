"""The requests by name, and the process that does them: a list of JSON on stdin, answers out."""

import json
import os
import sys

from orchestra.controller.host import install, keys, look, remove
from orchestra.controller.host.paths import Refused

REQUESTS = {
    "check": look.check,
    "fetch": install.fetch,
    "unpack": install.unpack,
    "identify": install.identify,
    "put_file": install.put_file,
    "start": install.start,
    "make_key": keys.make_key,
    "authorize": keys.authorize,
    "withdraw": keys.withdraw,
    "stop": remove.stop,
    "uninstall": remove.uninstall,
}


def serve() -> None:
    """Do the requests (one line of stdin, a list) in order until one is refused; print answers."""
    requests = json.loads(sys.stdin.buffer.readline())
    answers = []
    os.umask(0o022)
    try:
        for request in requests:
            answers.append(REQUESTS[request["do"]](request))
    except Refused as error:
        answers.append({"error": str(error)})
    except OSError as error:
        answers.append({"error": f"{error.filename or 'a system call'}: {error.strerror}"})
    print(json.dumps(answers))
