"""A step on the cuda device as a CUDA graph, and its replay as one launch: see zoo/core/capture.py.

The step runs once as it is: kernels are compiled, libraries open their handles, and an arena, memory that nobody else
is given, grows to what the step takes. Then it runs again while the stream writes down what it is asked for and does
none of it; so whatever the step does to tensors in place has been done once. The graph's results are then given the
values of the first run. Its launches read and write the same addresses ever after: the arena and all tensors that the
step read are held as long as the replay is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from zoo.core.errors import ZooError

REFUSED = "this step cannot be captured"
ATTEMPTS = 3  # captures; a graph whose capture made the arena grow is thrown away


class Replay:
    """`result`: what the step returned, whose tensors each launch writes anew."""

    def __init__(self, graph: Any, held: Any, result: Any):
        self.graph, self.held, self.result = graph, held, result

    def __call__(self) -> bool:
        self.graph.launch()
        return True


class Recorder:
    """Of one step. The backend tells it which arrays its ops were given."""

    def __init__(self, driver: Any):
        self.driver, self.arena = driver, driver.arena()
        self.held: list[Any] = []

    def hold(self, args: Any) -> None:
        self.held += [a for a in args if hasattr(a, "strides") and not self.arena.owns(a)]

    def record(self, step: Callable[[], Any]) -> Replay:
        """Raises ZooError where a graph cannot do what the step does."""
        with self.driver.current():
            with self.arena:
                values = step()
            values = [handle.copy() for handle in handles(values)]  # not in the arena
            for _ in range(ATTEMPTS):
                size = self.arena.size
                graph, result = self._capture(step)
                if self.arena.size == size:
                    break
                graph = result = None  # the arena's memory is free again
            else:
                raise ZooError(
                    REFUSED, f"it took more memory each time, {self.arena.size:,} bytes after {ATTEMPTS} runs",
                    "A step must not keep what it makes. ZOO_OFF=capture runs it as it is.",
                )  # fmt: skip
            for handle, value in zip(handles(result), values, strict=True):
                handle[...] = value
        return Replay(graph, (self.arena, self.held), result)

    def _capture(self, step: Callable[[], Any]) -> tuple[Any, Any]:
        self.held = []
        with self.arena, self.driver.capture() as graph:
            return graph, step()


def handles(result: Any) -> Iterator[Any]:
    """Of a tensor, or of tuples, lists and dictionaries of them."""
    if hasattr(result, "handle"):
        yield result.handle
    elif isinstance(result, tuple | list):
        for part in result:
            yield from handles(part)
    elif isinstance(result, dict):
        yield from handles(list(result.values()))
    elif result is not None:
        raise ZooError(
            REFUSED, f"it returns {type(result).__name__}; a replay can give tensors only",
            "Return tensors, or tuples, lists and dictionaries of them.",
        )  # fmt: skip


def reads_a_value() -> ZooError:
    return ZooError(
        REFUSED, "it reads a value in the middle, which would be that of its first run ever after",
        "Return the value, and read it outside.",
    )  # fmt: skip
