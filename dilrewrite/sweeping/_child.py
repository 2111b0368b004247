"""The process that answers for one model; `python -m dilrewrite.sweeping._child`, spoken to as any worker process."""

from __future__ import annotations

import _thread
import contextlib
import os
import pickle
import signal
import threading
import time
import traceback
from dataclasses import replace
from typing import IO

from dilrewrite import keywords
from dilrewrite._version import __version__
from dilrewrite.errors import FAULT, DilrewriteError, FailedError
from dilrewrite.runtimes import _worker
from dilrewrite.sweeping.task import PATIENCE_S, Answer, Task


def answer(task: Task) -> Answer:
    """Rewrite the model of a task as `dilrewrite optimize` does."""
    from dilrewrite.commands.optimize import optimize
    from dilrewrite.options import CommandOptions

    if task.version != __version__:
        said = f"dilrewrite {task.version} asks, and {__version__} is installed here"
        return Answer(said=f"{said}; install the same version on all machines", exit_code=4)
    if task.within is not None:
        os.chdir(task.within)
    given = {**task.options, "output": task.output, "report": task.report, "force": task.replaces}
    try:
        with keywords.typed() if task.typed else contextlib.nullcontext():
            report = optimize(task.model, CommandOptions.of(**given))
    except DilrewriteError as error:
        if not task.typed:
            error.reword(keywords.in_python)
        return Answer(said=str(error), exit_code=error.exit_code)
    except MemoryError:
        return Answer(said="out of memory", exit_code=FailedError.exit_code)
    except Exception as error:
        traceback.print_exc()
        last = "".join(traceback.format_exception_only(type(error), error)).strip()
        return Answer(said=f"{' '.join(last.split())}. {FAULT}", exit_code=FailedError.exit_code)
    return Answer(report=replace(report, _held=None), exit_code=report.exit_code)


def main() -> None:
    """Answer one task; end where nobody waits for the answer any more, or SIGTERM says so, and leave nothing behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError, KeyboardInterrupt):
        replies.write(_worker.READY)
        pickle.load(requests)
        _worker.send(replies, ("done", None))
        _, task = pickle.load(requests)
        threading.Thread(target=_watch, args=(requests,), daemon=True).start()
        _worker.send(replies, ("done", answer(task)))
    os._exit(0)


def _watch(requests: IO[bytes]) -> None:
    """Wait for the end of the requests, which is the end of who asked, and then interrupt the work."""
    if not requests.read(1):
        _thread.interrupt_main(signal.SIGTERM)
        time.sleep(PATIENCE_S)
        os._exit(1)


if __name__ == "__main__":
    main()
