"""Does some work, looks up names, fetches from the host, and crashes."""

import hashlib
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request

STEPS = 3


def work():
    started = time.monotonic()
    digest = b"iii"
    for _ in range(20_000):
        digest = hashlib.sha256(digest).digest()
    print(f"hashed 20,000 times in {time.monotonic() - started:.2f} s: {digest.hex()[:16]}")


def look_up(name):
    try:
        found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        # On a machine without a network this is the expected answer.
        print(f"DNS: {name}: {error.strerror}")
    else:
        addresses = sorted({address[0] for *_, address in found})
        print(f"DNS: {name} is {', '.join(addresses)}")


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            facts = json.load(response)
    except (OSError, ValueError) as error:
        print(f"fetch: {url}: {error}")
    else:
        print(
            f"fetch: {url} answers: worker {facts['worker']}, "
            f"kernel {facts['kernel']}, boot {facts['boot_id']}"
        )


def main():
    print(f"started as pid {os.getpid()} in boot {os.environ.get('III_BOOT_ID')}")
    look_up("host.iii.internal")
    look_up(os.environ["LOOK_UP"])
    for _ in range(STEPS):
        work()
        fetch(os.environ["WEB_URL"])
        time.sleep(1)
    print("now I crash", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
