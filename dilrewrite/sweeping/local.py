"""Answers of this machine, or of hosts that it asks: one model at a time for each, on a pool of threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

from dilrewrite.errors import MissingError
from dilrewrite.runtimes._worker import Child
from dilrewrite.sweeping.task import Answer, Task, ask, stop

HERE = ""
"""The device that is this machine."""


def answers(
    tasks: Iterable[Task], devices: Sequence[str], dropped: Callable[[str, str], object]
) -> Generator[tuple[Task, Answer], None, None]:
    """Yield the answers as they come; each device has one model at a time.

    Of several devices one that something is missing on is asked no more: another one answers its model, and `dropped`
    gets the device and why. Closing the iterator ends what is at work.
    """
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for device in devices or (HERE,):
        free.put(device)
    lost: dict[str, Answer] = {}
    children: set[Child] = set()
    stopped = threading.Event()

    def started(child: Child) -> None:
        children.add(child)
        if stopped.is_set():
            stop([child])

    def answer(task: Task) -> Answer:
        while (device := free.get()) is not None:
            asked = replace(task, on=device, options={**task.options, "on": device}) if device else task
            given = ask(asked, started)
            if given.exit_code != MissingError.exit_code or len(devices) < 2 or stopped.is_set():
                free.put(device)
                return given
            lost[device] = given
            dropped(device, given.said)
            if len(lost) == len(devices):
                free.put(None)
        free.put(None)  # for the next
        return list(lost.values())[-1]

    with ThreadPoolExecutor(max(len(devices), 1)) as pool:
        futures = {pool.submit(answer, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            stop(list(children))
