"""An HTTP service that says which kernel, boot and machine it runs on."""

import json
import os
import platform
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080


def say(text):
    # One write per line: print() makes two, and threads would mix theirs.
    sys.stdout.write(text + "\n")


def uptime_seconds():
    with open("/proc/uptime", encoding="ascii") as file:
        return float(file.read().split()[0])


def facts():
    return {
        "worker": os.environ.get("III_WORKER_NAME"),
        "kernel": platform.release(),
        "boot_id": os.environ.get("III_BOOT_ID"),
        "hostname": platform.node(),
        "pid": os.getpid(),
        "uptime_s": uptime_seconds(),
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/health":
            self.answer(200, b"ok\n", "text/plain")
        elif self.path == "/":
            body = json.dumps(facts(), indent=2).encode() + b"\n"
            self.answer(200, body, "application/json")
        else:
            self.answer(404, b"not found; try /\n", "text/plain")

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, template, *arguments):
        # The supervisor's probe asks every few seconds; nobody wants to read that.
        if self.path != "/health":
            say(f"{self.address_string()} {template % arguments}")


def main():
    server = ThreadingHTTPServer(("0.0.0.0", PORT), Handler)
    server.daemon_threads = True

    def stop(_signal, _frame):
        say("stopping")
        # shutdown() waits for serve_forever, which this very thread runs.
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    say(f"Linux {platform.release()}, listening on port {PORT}; try: curl http://127.0.0.1:18080/")
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
