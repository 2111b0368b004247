"""The time plan of a GPU run: work in a process of its own that may hang or die, and rows for all of it.

A part of the run is a list of items, each a dict of what its rows have in common. A worker process takes them one after
the other and prints rows; this side gives each a limit, ends a worker that hangs, starts another after a crash, and
says of every item that was not reached why. It needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]

BUDGET = "budget"

STARTS = 3
"""How often in a row a worker may die before it has done anything."""

START_S = 90.0
"""How long a worker may take to start: on a machine that is fresh, imports come from a cold disk."""

UNHEALTHY = 3
"""The exit code of a worker whose device does not answer any more after a failure."""


def wanted(only: str, name: str) -> bool:
    """Say whether a name has one of the words, which commas part; no words are all."""
    return any(word in name for word in only.split(","))


# -- the side that has the clock -------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Done:
    """What came of a part: rows, what the worker said about its device, and how often it died."""

    rows: list[Row] = field(default_factory=list)
    about: Row = field(default_factory=dict)
    deaths: int = 0
    refused: str | None = None
    """Why nothing can be run at all."""


def work_off(
    command: Sequence[str],
    items: Sequence[Row],
    *,
    deadline: float,
    last: float,
    limit_s: float,
    options: Row,
    log: IO[str],
    keep: Callable[[Row], None] = lambda _: None,
) -> Done:
    """Do the items in turn; none begins after `deadline` (on the monotonic clock), and all is over at `last`.

    `limit_s`: for one item. `keep` has each row at once. Every item that no row came of has one that says why.
    """
    done = Done()
    reached: set[int] = set()
    left, idle = list(range(len(items))), 0
    why = BUDGET

    def add(row: Row) -> None:
        done.rows.append(row)
        keep(row)

    while left and time.monotonic() < deadline:
        question = {"items": [(n, items[n]) for n in left], "deadline": deadline, "options": options}
        worker = _Worker(command, question, log)
        current, finished, until, began = None, False, min(time.monotonic() + START_S, last), False
        try:
            while not finished:
                kind, value = worker.next(until - time.monotonic())
                if kind == "about":
                    done.about.update(value)
                elif kind == "begin":
                    current, began, until = value, True, min(time.monotonic() + limit_s, last)
                    reached.add(value)
                elif kind == "row" and current is not None:
                    add({**items[current], **value})
                elif kind == "end":
                    current, until = None, min(time.monotonic() + limit_s, last)
                elif kind in ("done", "refused"):
                    finished, done.refused = True, value
                    left = []
                else:
                    late = kind == "late"
                    worker.kill()
                    ended = f"no answer within {limit_s:g} s" if late else f"crashed: {worker.last_words()}"
                    if late and time.monotonic() >= last:
                        ended = f"{BUDGET}: cut off"
                    if current is not None:
                        add({**items[current], "not_run": ended, "failed": True})
                    done.deaths += 1
                    finished = True
                    left = [n for n in left if n not in reached]
                    idle = 0 if began else idle + 1
                    if idle >= STARTS or (late and not began):
                        why, deadline = f"the worker does not start: {ended}", -1.0
        finally:
            worker.close()
    for number, item in enumerate(items):
        if number not in reached and done.refused is None:
            add({**item, "not_run": why})
    return done


class _Worker:
    """A worker process in a process group of its own."""

    def __init__(self, command: Sequence[str], question: Row, log: IO[str]) -> None:
        self._log, self._said_from = log, log.tell()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        self._said: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the next message says so
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # the last line of a process that died is cut
                kind, value = json.loads(line)
                self._said.put((kind, value))
        self._said.put(("gone", None))

    def next(self, seconds: float) -> tuple[str, Any]:
        """The next message; ("late", None) after so many seconds."""
        try:
            return self._said.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return "late", None

    def last_words(self) -> str:
        """How it ended, and the last line of what it wrote to standard error."""
        code = self._process.poll()
        ended = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        with contextlib.suppress(OSError):
            self._log.flush()
            with Path(self._log.name).open(encoding="utf-8", errors="replace") as text:
                text.seek(self._said_from)
                lines = [line.strip() for line in text.read().splitlines() if line.strip()]
            return f"{ended}: {lines[-1][:200]}" if lines else ended
        return ended

    def kill(self) -> None:
        """End it and what it started; a process that hangs in the driver may outlive this, and is left."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # one that is dying has its exit code
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def close(self) -> None:
        """See that it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self.kill()
        self._listener.join(2)
        if not self._listener.is_alive() and self._process.stdout is not None:
            self._process.stdout.close()


# -- the side that works ---------------------------------------------------------------------------------------------


def serve(
    begin: Callable[[Row], tuple[Row, Callable[[Row], Iterator[Row]]]],
    healthy: Callable[[], bool] = lambda: True,
) -> None:
    """Answer the question on standard input: `begin` gets the options, and returns what the device is, and the work.

    The work of an item yields its rows; what it raises is a row too. When `healthy` says no then, the process ends, and
    another takes over.
    """
    question = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print do so elsewhere

    def say(kind: str, value: Any = None) -> None:
        out.write(json.dumps([kind, value]) + "\n")
        out.flush()

    try:
        about, work = begin(question["options"])
    except Exception as error:
        say("refused", " ".join(str(error).split())[:200] or type(error).__name__)
        os._exit(0)
    say("about", about)
    for number, item in question["items"]:
        if time.monotonic() >= question["deadline"]:
            break
        say("begin", number)
        fine = True
        try:
            break_down(question["options"].get("faults", ()), item)
            for row in work(item):
                say("row", row)
        except Exception as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            say("row", {"not_run": text, "failed": True})
            fine = healthy()
        say("end", number)
        if not fine:
            os._exit(UNHEALTHY)
    say("done")
    out.flush()
    os._exit(0)  # nothing that a library does at its end may hang


def break_down(faults: Sequence[str], item: Row) -> None:
    """Hang or crash on purpose where a fault of a dry run, `hang:WORDS` or `crash:WORDS`, names an item."""
    for fault in faults:
        kind, _, words = fault.partition(":")
        if words not in ", ".join(map(str, item.values())):
            continue
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        time.sleep(1e6)
