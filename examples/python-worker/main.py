"""A worker of an iii engine. It runs in a microVM, and reaches of the host nothing but the engine."""

import os
import platform
import signal
import sys

from iii import register_worker

# iii-super sets it: the engine's address, as this guest must write it.
if not os.environ.get("III_URL"):
    # Nothing that a restart would change: see `restart` in docs/workers-file.md.
    print("III_URL is not set: start me with --engine ws://localhost:49134", file=sys.stderr)
    sys.exit(78)


def greet(data):
    if not (data or {}).get("name"):
        raise ValueError("whom? I was given no name")
    return {
        "message": f"Hello, {data['name']}!",
        "worker": platform.node(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


# The supervisor asks a worker to end with SIGTERM. The SDK's own thread would go on, and the engine
# learns of it by the closed socket.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

iii = register_worker()
iii.register_function("python-worker::greet", greet)
print(f"serving python-worker::greet for {os.environ['III_URL']}", flush=True)

# With the main thread's end the interpreter begins to shut down: the SDK would go on, but could not
# reconnect.
while True:
    signal.pause()
