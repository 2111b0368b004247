"""A ProxyCommand of ssh: a line to HOST PORT on which every byte takes SECONDS each way."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable


def relay(read: Callable[[int], bytes], write: Callable[[bytes], object], seconds: float) -> None:
    """Write what is read, so many seconds later; several parts are on the way at once."""
    waiting: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def deliver() -> None:
        while True:
            due, data = waiting.get()
            time.sleep(max(due - time.monotonic(), 0.0))
            if not data:
                os._exit(0)
            write(data)

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        data = read(65536)
        waiting.put((time.monotonic() + seconds, data))
        if not data:
            return


def main() -> None:
    host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    line = socket.create_connection((host, port))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=relay, args=(line.recv, lambda data: os.write(1, data), seconds))
    back.start()
    relay(lambda size: os.read(0, size), line.sendall, seconds)
    back.join()


if __name__ == "__main__":
    main()
