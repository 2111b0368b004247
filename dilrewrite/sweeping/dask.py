"""Answers of the workers of a Dask scheduler, which does all scheduling: one task a model, one at a time a worker.

A worker that is lost has its model answered by another. Models go as bytes, and results come back as bytes.
"""

from __future__ import annotations

import logging
import pydoc
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, WorkerPlugin, get_worker, wait
from distributed import TimeoutError as LateError
from distributed.comm import CommClosedError

from dilrewrite._version import __version__
from dilrewrite.errors import MissingError
from dilrewrite.runtimes._worker import Child
from dilrewrite.sweeping.task import Answer, Task, ask_elsewhere, failed, stop

SCHEME = "dask://"

RESOURCE = "dilrewrite"
"""Of which each worker has one, and each task takes one: so a worker answers for one model at a time."""

CONNECT_S = 10.0
POLL_S = 1.0

PATIENCE_S = 60.0
"""How long the scheduler may be without any worker."""

AHEAD = 2
"""So many tasks a worker are at the scheduler, which holds their models."""

RETRIES = 2
"""How often a task is tried again that was not ended by a model: by what a network does, say."""

_children: dict[str, set[Child]] = {}
_stopped: set[str] = set()
_lock = threading.Lock()


class OneAtATime(WorkerPlugin):  # type: ignore[misc]
    """What a sweep has on every worker, also on one that joins later: the resource, and an end."""

    def __init__(self, sweep: str) -> None:
        self.name, self.sweep = f"dilrewrite-{sweep}", sweep

    async def setup(self, worker: Any) -> None:
        """Give the worker its resource."""
        await worker.set_resources(**{RESOURCE: 1})

    def teardown(self, worker: Any) -> None:  # noqa: ARG002 - this process is the worker's
        """End what is at work for the sweep."""
        with _lock:
            _stopped.add(self.sweep)
            stop(_children.pop(self.sweep, ()))


def answer(task: Task) -> Answer:
    """Answer for a model, on a worker."""

    def started(child: Child) -> None:
        with _lock:
            _children.setdefault(task.sweep, set()).add(child)
            if task.sweep in _stopped:
                stop([child])

    worker = get_worker()  # what lies in its folder is removed with it, or when the next one starts there
    return replace(ask_elsewhere(task, started, Path(worker.local_directory)), on=str(worker.name))


def answers(tasks: Iterable[Task], address: str) -> Generator[tuple[Task, Answer], None, None]:
    """Yield the answers as they come. Raises `MissingError` where no scheduler or no fitting worker answers.

    Where the scheduler, or every worker, is lost for `PATIENCE_S`, the answers of the other models are that. Closing
    the iterator ends what is at work.
    """
    tasks = iter(tasks)
    with _quiet(), _connected(address) as client:
        _check(client, address)
        first = next(tasks, None)
        if first is None:
            return
        plugin = OneAtATime(first.sweep)
        client.register_plugin(plugin)
        pending: dict[Future, Task] = {_submitted(client, first): first}
        try:
            yield from _answered(client, address, tasks, pending)
        finally:
            with suppress(OSError, LateError, CommClosedError, RuntimeError):
                if client.status == "running":
                    client.cancel(list(pending))
                    client.unregister_worker_plugin(plugin.name)


def _answered(
    client: Client, address: str, tasks: Iterator[Task], pending: dict[Future, Task]
) -> Iterator[tuple[Task, Answer]]:
    seen = time.monotonic()
    while True:
        workers = _workers(client)
        if workers:
            seen = time.monotonic()
        if (error := _lost(client, address, seen)) is not None:
            yield from ((task, failed(error, error.exit_code)) for task in (*pending.values(), *tasks))
            return
        if client.status == "running":
            while len(pending) < max(AHEAD * workers, 1) and (task := next(tasks, None)) is not None:
                pending[_submitted(client, task)] = task
            if not pending:
                return
        if not pending:  # the connection is made anew, or not
            time.sleep(POLL_S)
            continue
        with client.as_current(), suppress(LateError, CancelledError):
            wait(list(pending), timeout=POLL_S, return_when="FIRST_COMPLETED")
        for future in [future for future in pending if future.status in ("finished", "error")]:
            yield pending.pop(future), _result(future, address)


def _lost(client: Client, address: str, seen: float) -> MissingError | None:
    """Return the error where nobody is left to answer; workers were there at `seen`."""
    if client.status in ("closing", "closed"):
        return MissingError(f"the connection to {address} was lost", hint="run the same command again")
    if time.monotonic() - seen > PATIENCE_S:
        why = f"{address} had no worker for {PATIENCE_S:g} s"
        return MissingError(why, hint="start some: dask worker HOST:PORT")
    return None


def _submitted(client: Client, task: Task) -> Future:
    return client.submit(answer, task, pure=False, retries=RETRIES, resources={RESOURCE: 1})


def _result(future: Future, address: str) -> Answer:
    """Return the answer of a task that is done, in whatever way."""
    if future.status == "finished":
        result: Answer = future.result()
        return result
    error = future.exception()
    if isinstance(error, KilledWorker):
        return Answer(said="each worker that it was given to was lost, perhaps out of memory", exit_code=1)
    if isinstance(error, ImportError):
        return Answer(said=f"a worker of {address} cannot import dilrewrite: {error}", exit_code=4)
    return failed(error)


def _workers(client: Client) -> int:
    """Return how many workers there are; 0, too, where the scheduler does not answer."""
    if client.status != "running":
        return 0
    try:
        return len(client.nthreads())
    except (OSError, CommClosedError, LateError):
        return 0


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    place = address.removeprefix(SCHEME)
    hint = "start one there: dask scheduler, and workers: dask worker HOST:PORT"
    try:
        client = Client(f"tcp://{place}", timeout=CONNECT_S, set_as_default=False)
    except (OSError, LateError, ValueError) as error:
        raise MissingError(f"{address}: no scheduler answers there", hint=hint) from error
    try:
        yield client
    finally:
        client.close(timeout=CONNECT_S)


def _check(client: Client, address: str) -> None:
    """Raise `MissingError` unless there are workers, and each has this version of dilrewrite."""
    # of the standard library, so on every worker
    found: Mapping[str, Any] = client.run(pydoc.locate, "dilrewrite._version.__version__", on_error="return")
    if not found:
        raise MissingError(f"{address} has no workers", hint="start some: dask worker HOST:PORT")
    for worker, version in found.items():
        if version != __version__:
            has = f"has dilrewrite {version}" if isinstance(version, str) else "does not have dilrewrite"
            hint = f"install dilrewrite {__version__} there, in the Python of the worker"
            raise MissingError(f"{address}: the worker {worker} {has}", hint=hint)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the library logs of lost connections, and of large tasks, from the screen: the answers say it."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
