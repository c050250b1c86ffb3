"""Tensor: what model code holds. A value on a device; immutable; every operation goes through `bind`."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.core.device import device as device_of
from zoo.core.dtype import bfloat16, bool_, dtype, float32, int32, is_float, promote
from zoo.core.errors import DeviceError, DtypeError, OpError, ShapeError
from zoo.core.indexing import part
from zoo.core.prim import Kind, Prim
from zoo.core.prims import TABLE

if TYPE_CHECKING:
    from zoo.core.autodiff import Gradients

Scalar = float | int | bool
_NUMBERS = (float, int)  # bool is an int


class Tensor:
    """A value on a device. `handle` is what the device's backend works on (a numpy array, a CuPy array, a Var)."""

    __slots__ = ("__weakref__", "device", "handle")
    __array_priority__ = 1000  # numpy_array + tensor asks the tensor, which explains itself

    def __init__(self, handle: Any, device: Any):
        self.handle = handle
        self.device = device

    # what it is

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.handle.dtype

    @property
    def ndim(self) -> int:
        return len(self.handle.shape)

    @property
    def size(self) -> int:
        return math.prod(self.handle.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.handle.shape:
            raise TypeError("a tensor without axes has no length")
        return self.handle.shape[0]

    def __repr__(self) -> str:
        values = np.array2string(
            self.numpy().astype(float32 if is_float(self.dtype) else self.dtype), threshold=20, precision=4
        )
        return f"Tensor({values}, {self.dtype.name} {self.shape}, {self.device.name})"

    # out of the zoo and onto other devices

    def numpy(self) -> np.ndarray:
        """The values as a numpy array: a read-only view where the device's memory is the host's, else a copy."""
        view = np.asarray(self.device.to_host(self.handle)).view()
        view.flags.writeable = False
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, **kwargs: Any) -> Any:
        array = _exported(self)
        try:
            return array.__dlpack__(**kwargs)
        except BufferError as e:
            if array.dtype != bfloat16:  # numpy 2.0 exports no read-only memory
                return array.copy().__dlpack__(**kwargs)
            what, fix = "a bfloat16 tensor cannot be shared", "Cast it: x.astype(zoo.float32)."
            raise DtypeError(str(e), fix, what=what) from None

    def __dlpack_device__(self) -> Any:
        return _exported(self).__dlpack_device__()

    def item(self) -> Any:
        return self.numpy().item()

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    def to(self, device: Any) -> Tensor:
        """The same values on another device. Onto an Autodiff device, a tensor of its inner device becomes a
        variable, in which gradients can be asked; off it, the plain value."""
        device = device_of(device)
        if device is self.device:
            return self
        if getattr(device, "inner", None) is not None:
            return Tensor(device.variable(self.to(device.inner).handle), device)
        if getattr(self.device, "inner", None) is not None:
            return Tensor(self.device.value(self.handle), self.device.inner).to(device)
        return Tensor(device.from_host(self.device.to_host(self.handle)), device)

    def backward(self, gradient: Tensor | None = None) -> Gradients:
        """Gradients of this scalar (or of sum(self * gradient)) in all variables it was made from."""
        pull = getattr(self.device, "backward", None)
        if pull is None:
            raise DeviceError(
                f"no gradients on device {self.device.name!r}",
                "only an Autodiff device records what a value was made from",
                "Move the model there: model.to(zoo.Autodiff(device)).",
            )
        return pull(self, gradient)

    # shape and dtype

    def astype(self, to: Any) -> Tensor:
        wanted = dtype(to)
        return self if self.handle.dtype == wanted else bind(TABLE["cast"], self, dtype=wanted)

    def reshape(self, *shape: Any) -> Tensor:
        """One size may be -1: it is worked out from the others."""
        sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
        return bind(TABLE["reshape"], self, shape=_sizes(self.handle.shape, sizes))

    def permute_dims(self, *axes: Any) -> Tensor:
        listed = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], Sequence) else axes
        return bind(TABLE["permute_dims"], self, axes=tuple(a + self.ndim if a < 0 else a for a in listed))

    @property
    def mT(self) -> Tensor:
        """The last two axes swapped."""
        return self.permute_dims(*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)

    def __getitem__(self, key: Any) -> Tensor:
        return _index(self, key)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    # reductions

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return bind(TABLE["sum"], self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return bind(TABLE["mean"], self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return bind(TABLE["max"], self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return bind(TABLE["min"], self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int = -1, keepdims: bool = False) -> Tensor:
        return bind(TABLE["argmax"], self, axis=axis, keepdims=keepdims)

    # operators

    def __neg__(self) -> Tensor:
        return bind(TABLE["neg"], self)

    def __abs__(self) -> Tensor:
        return bind(TABLE["abs"], self)

    def __invert__(self) -> Tensor:
        return bind(TABLE["logical_not"], self)

    def __add__(self, other: Any) -> Tensor:
        return bind(TABLE["add"], self, other)

    def __sub__(self, other: Any) -> Tensor:
        return bind(TABLE["sub"], self, other)

    def __mul__(self, other: Any) -> Tensor:
        return bind(TABLE["mul"], self, other)

    def __truediv__(self, other: Any) -> Tensor:
        return bind(TABLE["div"], self, other)

    def __mod__(self, other: Any) -> Tensor:
        return bind(TABLE["remainder"], self, other)

    def __pow__(self, other: Any) -> Tensor:
        if isinstance(other, _NUMBERS) and other == 2:
            return bind(TABLE["square"], self)
        return bind(TABLE["pow"], self, other)

    def __radd__(self, other: Any) -> Tensor:
        return bind(TABLE["add"], other, self)

    def __rsub__(self, other: Any) -> Tensor:
        return bind(TABLE["sub"], other, self)

    def __rmul__(self, other: Any) -> Tensor:
        return bind(TABLE["mul"], other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return bind(TABLE["div"], other, self)

    def __rmod__(self, other: Any) -> Tensor:
        return bind(TABLE["remainder"], other, self)

    def __rpow__(self, other: Any) -> Tensor:
        return bind(TABLE["pow"], other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return bind(TABLE["matmul"], self, other, transpose_a=False, transpose_b=False)

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        return bind(TABLE["equal"], self, other)

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        return bind(TABLE["not_equal"], self, other)

    def __lt__(self, other: Any) -> Tensor:
        return bind(TABLE["less"], self, other)

    def __le__(self, other: Any) -> Tensor:
        return bind(TABLE["less_equal"], self, other)

    def __gt__(self, other: Any) -> Tensor:
        return bind(TABLE["greater"], self, other)

    def __ge__(self, other: Any) -> Tensor:
        return bind(TABLE["greater_equal"], self, other)

    def __and__(self, other: Any) -> Tensor:
        return bind(TABLE["logical_and"], self, other)

    def __or__(self, other: Any) -> Tensor:
        return bind(TABLE["logical_or"], self, other)

    __hash__ = object.__hash__  # == is elementwise, so tensors are told apart by identity


def tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of `data`: numbers, nested lists, a numpy array, another tensor. Python floats become float32 and
    integers int32; arrays keep their dtype. `device`: a name or a device; the default if None."""
    device = device_of(device)
    if isinstance(data, Tensor):
        moved = data.to(device)
        return moved if dtype is None else moved.astype(dtype)
    try:
        array = np.array(data)  # a copy: who made the data may write to it again
    except ValueError as e:
        raise ShapeError(str(e), "Lists must be of one length on each axis.", what="this is not a tensor") from None
    wanted = _dtype(dtype if dtype is not None else array.dtype.newbyteorder("="))
    if dtype is None and not isinstance(data, np.ndarray | np.generic):
        wanted = {"f": float32, "i": int32}.get(array.dtype.kind, wanted)
        if wanted == int32 and (array.astype(int32) != array).any():
            raise DtypeError("an integer is beyond int32", "Say which dtype: zoo.tensor(x, 'int64').", what="tensor")
    return Tensor(_root(device).from_host(array.astype(wanted, copy=False)), device)


_dtype = dtype


def from_dlpack(x: Any, device: Any = None) -> Tensor:
    """A tensor over the memory of another library's array (torch, jax, cupy, numpy), without a copy.

    Host memory becomes a tensor of `device` (the default one if None), GPU memory one of its cuda device.
    """
    kind, index = x.__dlpack_device__()
    if int(kind) in (2, 13):  # kDLCUDA, kDLCUDAManaged
        found = device_of(f"cuda:{index}")
        return Tensor(found.xp.from_dlpack(x), found)
    try:
        array = np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError) as e:
        raise DtypeError(str(e), "Cast or detach it first.", what="this memory cannot be shared") from None
    device = device_of(device)
    return Tensor(_root(device).from_host(np.asarray(array, _dtype(array.dtype))), device)


def _exported(x: Tensor) -> Any:
    """The root backend's array, for DLPack. numpy's single numbers have no __dlpack__."""
    while getattr(x.device, "inner", None) is not None:
        x = x.to(x.device.inner)
    return x.handle if hasattr(x.handle, "__dlpack__") else np.asarray(x.handle)


def _root(device: Any) -> Any:
    while getattr(device, "inner", None) is not None:
        device = device.inner
    return device


def meet(a: Any, b: Any) -> Any:
    """The device on which tensors of devices a and b meet: the outer one, if one decorates the other."""
    for outer, other in ((a, b), (b, a)):
        inner = outer
        while inner is not None:
            if inner is other:
                return outer
            inner = getattr(inner, "inner", None)
    raise DeviceError(
        f"tensors of {a.name} and {b.name} in one op", "an op runs on one device", "Move one of them: x.to(device)."
    )


def describe(a: Any) -> str:
    return f"{a.dtype.name} {tuple(a.shape)}" if hasattr(a, "shape") else repr(a)


def bind(prim: Prim, *args: Any, device: Any = None, **attrs: Any) -> Any:
    """Applies an op to tensors, Python numbers and None: finds the device, promotes the dtypes of elementwise ops,
    checks shapes and dtypes, runs. Every operation of the zoo passes here once."""
    handles = []
    for a in args:
        if type(a) is Tensor:
            if device is None:
                device = a.device
            elif a.device is not device:
                device = meet(device, a.device)
            handles.append(a.handle)
        elif isinstance(a, np.generic):
            handles.append(a.item())
        elif isinstance(a, np.ndarray):
            raise DtypeError(f"argument is a numpy array {a.shape}", "Make it a tensor: zoo.tensor(x).", what=prim.name)
        elif a is None or isinstance(a, _NUMBERS):
            if (a is None) is (prim.kind is Kind.ELEMENTWISE):  # numbers meet tensors there; elsewhere None leaves out
                raise DtypeError(f"argument is {a!r}", "Make it a tensor: zoo.tensor(x).", what=prim.name)
            handles.append(a)
        elif isinstance(a, Tensor):  # a parameter that is not filled yet, whose handle says so
            handles.append(a.handle)
        else:
            raise DtypeError(f"argument is a {type(a).__name__}", "Make it a tensor: zoo.tensor(x).", what=prim.name)
    if device is None:
        device = device_of()
    try:
        if prim.kind is Kind.ELEMENTWISE:
            _promote(prim, handles, device)
        prim.infer(*handles, **attrs)
        out = device.bind(prim, handles, attrs)
    except OpError as e:
        if e.what:
            raise
        listed = ", ".join(describe(h) for h in handles)
        raise e.at(f"{prim.name}({listed}) on {device.name} cannot be done") from None
    except AttributeError as e:
        if e.obj is not None:
            raise
        raise DtypeError("argument is None", "Leave out only what the op says may be None.", what=prim.name) from None
    except OverflowError as e:  # a Python number that the dtype it meets cannot hold
        raise DtypeError(str(e), "Cast the tensor to a wider dtype first.", what=prim.name) from None
    return tuple(Tensor(y, device) for y in out) if type(out) is tuple else Tensor(out, device)


def _promote(prim: Prim, handles: list[Any], device: Any) -> None:
    """Casts the tensors among `handles` to their common dtype, in place. Python numbers take the dtype they meet."""
    common, mixed = None, False
    for h in handles:
        d = getattr(h, "dtype", None)
        if d is None or (d == bool_ and prim.name == "where"):
            continue
        if common is None:
            common = d
        elif d != common:
            common, mixed = promote(common, d), True
    if common is None:
        if prim.name == "where":
            return
        raise DtypeError("none of the arguments is a tensor", "Use Python's own arithmetic, or zoo.tensor(x).")
    accepts = prim.accepts
    wanted = common
    if not is_float(common):
        if accepts == "float" or (accepts != "bool" and any(type(h) is float for h in handles)):
            wanted = float32
        elif common == bool_ and accepts == "number":
            wanted = int32
    if accepts == "bool" and wanted != bool_:
        raise DtypeError(f"{wanted.name} is not bool", "Compare first: x != 0.")
    if mixed or wanted != common:
        cast = TABLE["cast"]
        for i, h in enumerate(handles):
            d = getattr(h, "dtype", None)
            if d is not None and d != wanted and not (prim.name == "where" and i == 0):
                handles[i] = device.bind(cast, (h,), {"dtype": wanted})


def _sizes(old: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    if -1 not in sizes:
        return tuple(sizes)
    known = math.prod(n for n in sizes if n != -1)
    if sizes.count(-1) > 1 or known == 0 or math.prod(old) % known:
        raise ShapeError(
            "one size can be -1, if the others divide the number of values", what=f"cannot reshape {old} to {sizes}"
        )
    return tuple(math.prod(old) // known if n == -1 else n for n in sizes)


def _index(x: Tensor, key: Any) -> Tensor:
    """Basic indexing (see indexing.py), or one tensor of integers, which takes rows."""
    if isinstance(key, Tensor):
        if key.dtype == bool_:
            raise ShapeError(
                "the shape of x[mask] would depend on values", "Use where(mask, x, 0).", what="cannot index by a mask"
            )
        return bind(TABLE["take"], x, key)
    taken = part(key, x.shape)
    y = bind(TABLE["slice"], x, start=taken.start, stop=taken.stop, step=taken.step)
    if taken.flipped:
        y = bind(TABLE["flip"], y, axis=taken.flipped)
    return y if y.shape == taken.shape else bind(TABLE["reshape"], y, shape=taken.shape)
