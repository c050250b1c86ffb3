"""Errors that a stranger can act on.

Every error that reaches a user is a `ZooError`: what happened, why, and what to do, one line each. The command line
prints those three lines and exits with 1; in Python they are the message of the exception.
"""

from __future__ import annotations


class ZooError(Exception):
    """What happened; why (may be several lines); what to do."""

    def __init__(self, what: str, why: str = "", fix: str = ""):
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)

    def __str__(self) -> str:
        lines = [self.what, *self.why.splitlines(), *self.fix.splitlines()]
        return "\n  ".join(line for line in lines if line)


class OpError(ZooError):
    """An op was called with arguments it cannot take. `infer` rules raise it with `why` and `fix`; `bind` adds which
    op, shapes, dtypes and device (see `zoo.core.tensor.bind`)."""

    def __init__(self, why: str, fix: str = "", what: str = ""):
        super().__init__(what, why, fix)

    def at(self, what: str) -> OpError:
        return type(self)(self.why, self.fix, what)


class ShapeError(OpError):
    """Shapes do not fit the op."""


class DtypeError(OpError):
    """Dtypes do not fit the op."""


class DeviceError(ZooError):
    """A device does not exist here, or tensors of two devices met."""


class MissingKernel(ZooError):
    """A backend has neither a kernel nor a lowering for an op."""


class NotDifferentiable(ZooError):
    """A gradient was asked through an op that has none."""


class WeightsError(ZooError):
    """A checkpoint cannot be found, read, trusted, or does not fit the model."""


class DownloadError(ZooError):
    """A file could not be fetched: no network, gated, missing, corrupt, or no space to keep it."""


class DataError(ZooError):
    """A user's image, audio, text or data set cannot be used."""
