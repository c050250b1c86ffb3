"""Processes that make the batches of a Loader ahead of their use, in its order.

Each has the Loader, since what batch i of epoch e holds is a function of (e, i): so it is told two numbers and answers
with arrays, the bits that the Loader itself would have made. They are started by "spawn", with nothing of this process
but what they are sent: a copy made by fork would have the locks of its threads without the threads.

Arrays come through a socket as they lie (pickle 5, out of band). Memory shared with the process and mapped here
took no less time for a batch of 32 pictures of 224 x 224 in float32 (19 MB: 7.5 and 6.9 ms), since its pages are new.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import get_context, resource_tracker, util
from multiprocessing.connection import Connection
from typing import Any

from zoo.core.errors import DataError, ZooError

AHEAD = 2
"""Batches that a worker is asked for before the first of them is taken: one in the making while one is fetched."""


class WorkerTrace(Exception):
    """Cause of an exception that came from a worker: its traceback there."""

    def __str__(self) -> str:
        return f"in a worker process\n{self.args[0]}"


class Workers:
    """`count` processes with a Loader each. They end when this is closed or collected, when this process ends in
    whatever way, and stay out of the way of Ctrl-C, which is this process's to answer."""

    def __init__(self, loader: Any, count: int):
        """Raises DataError if the loader's data or transform cannot be sent to another process."""
        try:
            sent = pickle.dumps(loader, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # pickling runs the data's own code
            raise DataError(
                "this data cannot be read by worker processes", str(error) or type(error).__name__,
                "Use --workers 0; in Python, give classes and functions of a module instead of local ones.",
            ) from error  # fmt: skip
        context = get_context("spawn")
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._close = util.Finalize(self, _end, args=(self._processes, self._pipes), exitpriority=100)
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, os.getpid()), daemon=True, name="zoo data worker")
            with _Blocked():
                process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
            try:
                ours.send_bytes(sent)
            except OSError:
                raise self._died(len(self._pipes) - 1) from None
        self._asked = 0
        self._waiting: list[deque[int]] = [deque() for _ in range(count)]  # questions without an answer yet
        self.busy = False
        """Somebody is taking batches."""

    def close(self) -> None:
        self._close()

    @property
    def alive(self) -> bool:
        return bool(self._close.still_active())

    def make(self, tasks: Iterable[tuple[int, int]]) -> Iterator[Any]:
        """What `loader.make(epoch, number)` gives for each task, in order. Exceptions are raised here with the worker's
        traceback as their cause. Raises ZooError if a worker has died."""
        self.busy = True
        try:
            due: deque[tuple[int, int]] = deque()  # (worker, question)
            tasks = iter(tasks)
            turn = 0
            while True:
                while len(due) < AHEAD * len(self._pipes) and (task := next(tasks, None)) is not None:
                    due.append((turn, self._ask(turn, task)))
                    turn = (turn + 1) % len(self._pipes)
                if not due:
                    return
                yield self._answer(*due.popleft())
        finally:
            self.busy = False

    def _ask(self, worker: int, task: tuple[int, int]) -> int:
        self._asked += 1
        try:
            self._pipes[worker].send(task)
        except OSError:
            raise self._died(worker) from None
        self._waiting[worker].append(self._asked)
        return self._asked

    def _answer(self, worker: int, question: int) -> Any:
        """What came for a question; answers to those before it, which nobody waits for any more, are dropped."""
        while True:
            try:
                answer = _receive(self._pipes[worker])
            except (EOFError, OSError):
                raise self._died(worker) from None
            except BaseException:  # an interrupt in the middle of an answer: what follows could not be told apart
                self.close()
                raise
            if self._waiting[worker].popleft() == question:
                break
        if isinstance(answer, _Failed):
            answer.error.__cause__ = WorkerTrace(answer.trace)
            raise answer.error
        return answer

    def _died(self, worker: int) -> ZooError:
        process = self._processes[worker]
        process.join(5)
        code = process.exitcode
        self.close()
        if code is not None and code < 0:
            why = f"it was ended by signal {-code}" + ("; systems do so when memory runs out" if code == -9 else "")
            fix = "Use fewer --workers, or smaller batches; a run that was saved goes on with --resume."
        else:
            why = f"it ended with exit code {code}; what it wrote is above"
            fix = 'A script that trains with workers needs its `if __name__ == "__main__":`. Or use --workers 0.'
        return ZooError("a worker process that reads the data is gone", why, fix)


class _Failed:
    """An exception and its traceback, on the way to the process that waits."""

    def __init__(self, error: Exception):
        self.trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        try:
            self.error: Exception = pickle.loads(pickle.dumps(error))
        except Exception:  # an exception of any library: say at least what it said
            self.error = RuntimeError(f"{type(error).__name__}: {error}")


class _Blocked:
    """Ctrl-C waits, so that a process that is started does not see it before it can decide to ignore it."""

    def __enter__(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # which spawn would start, and which lets Ctrl-C through again
            self.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})

    def __exit__(self, *error: object) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def _end(processes: list[Any], pipes: list[Connection]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:  # they only read: there is nothing to lose
        process.kill()
    for process in processes:
        process.join()


def _work(pipe: Connection, parent: int) -> None:
    """A worker's life: the Loader, then tasks, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    try:
        loader = pickle.loads(pipe.recv_bytes())
        while True:
            epoch, number = pipe.recv()
            try:
                answer = loader.make(epoch, number)
            except Exception as error:
                answer = _Failed(error)
            _send(pipe, answer)
    except (EOFError, OSError):
        return


def _follow(parent: int) -> None:
    """Ends this process soon after its parent, also in the middle of a batch that takes long."""
    wait = threading.Event().wait
    while os.getppid() == parent:
        wait(1.0)
    os._exit(1)


def _send(pipe: Connection, answer: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    pipe.send_bytes(pickle.dumps((head, [part.nbytes for part in parts])))
    for part in parts:
        if part.nbytes:
            pipe.send_bytes(part)


def _receive(pipe: Connection) -> Any:
    head, sizes = pickle.loads(pipe.recv_bytes())
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        if buffer:
            pipe.recv_bytes_into(buffer)
    return pickle.loads(head, buffers=buffers)
