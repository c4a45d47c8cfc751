"""A second device on a machine that has none: real numbers, and the rules of an accelerator.

torch's Python backend for PrivateUse1 registers the device type ``pretend``. Its tensors hold a CPU tensor each, and
every operation on them is checked as an accelerator would check it: operands on two devices raise, as does a generator
of the other device. Copies between the devices and waits for the device are listed. The device is there, and is the
best there is, only within `PretendDevice`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten
_ON = 0
"""How many `PretendDevice` are entered."""


class _Stream:
    """The one stream of the device: everything in it is done at once."""

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class _Backend(registration._DummyBackendModule):
    """What ``torch.pretend`` is."""

    Stream = _Stream
    _stream = _Stream()

    def is_available(self) -> bool:
        return _ON > 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: Any = None) -> None:
        pass

    def current_stream(self, device: Any = None) -> _Stream:
        return self._stream

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def get_device_name(self, device: Any = None) -> str:
        return "a pretended accelerator"


registration._setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
DEVICE = torch.device("pretend", 0)


class _OnDevice(Tensor):
    """A tensor whose numbers are those of ``held``, on the CPU, and whose device is ``pretend``."""

    held: Tensor

    @staticmethod
    def __new__(cls, *tensors: Tensor, requires_grad: bool = True, **_: Any) -> Any:
        held = tensors[0]
        if held.device.type != "cpu":  # accelerate makes the next parameter by the class of the last one
            return torch.nn.Parameter(held, requires_grad)
        return Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip

    def __init__(self, held: Tensor, requires_grad: bool = True) -> None:
        self.held = held

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"_OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, [])


_COPIES = {aten.copy_.default, aten._to_copy.default}
_MAY_MIX = _COPIES | {aten.set_.source_Tensor, aten._local_scalar_dense.default}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""An accelerator's tensor may be indexed by one of the CPU."""


_DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def _waits(func: Any, args: Any) -> bool:
    """Whether the host needs the numbers of a result, or of a mask, before it can go on."""
    if func in _INDEXED:
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return bool(_DATA_DEPENDENT & {*func.tags})


@cache
def _gives_an_argument_back(func: Any) -> bool:
    """Whether a result of an operation is one of its arguments, or a view of one."""
    return any(result.alias_info is not None for result in func._schema.returns)


def _tensors(given: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among arguments and in lists of them; as often as it is called, it must be faster than a pytree."""
    for x in given:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from _tensors(x)


def _each(change: Callable[[Tensor], Any], given: Any) -> Any:
    """An argument or a result with each of its tensors changed."""
    if isinstance(given, Tensor):
        return change(given)
    return type(given)(_each(change, x) for x in given) if isinstance(given, list | tuple) else given


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, _OnDevice) else tensor


def _put_here(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, _OnDevice) else _OnDevice(tensor)


def _run(func: Any, args: Any, kwargs: dict[str, Any], events: list[str]) -> Any:
    """Check an operation, do it on the CPU, and put the result where it belongs."""
    if func is aten._fused_sdp_choice.default:
        return 0  # plain products: every backend has them
    here, there = [], []
    for x in _tensors((args, *kwargs.values())):
        if isinstance(x, _OnDevice):
            here.append(x)
        elif x.dim():
            there.append(x)
    if here and there and func not in _MAY_MIX:
        indices = func in _INDEXED and all(x.dtype in (torch.long, torch.bool) for x in there)
        if not (indices and isinstance(args[0], _OnDevice)):
            raise RuntimeError(f"{func}: expected all tensors on one device, found {DEVICE} and cpu")
    named = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    result_here = bool(here) if named is None else named.type == DEVICE.type
    if func is aten.copy_.default:
        result_here = isinstance(args[0], _OnDevice)
    generator = kwargs.get("generator")
    if generator is not None and result_here and generator.device.type != DEVICE.type:
        raise RuntimeError(f"{func}: expected a generator on {DEVICE}, found one on {generator.device}")
    if here and _waits(func, args):
        events.append("wait")
    if func in _COPIES and (bool(here) != result_here or (here and there)):
        events.append("to device" if result_here else "to host")
    plain_args, plain_kwargs = _each(_held, args), {name: _each(_held, x) for name, x in kwargs.items()}
    if named is not None:
        plain_kwargs["device"] = torch.device("cpu") if named.type == DEVICE.type else named
    found = func(*plain_args, **plain_kwargs)
    if not result_here:
        return found
    found = _each(_put_here, found)
    if here and _gives_an_argument_back(func) and func is not aten._to_copy.default:
        return return_and_correct_aliasing(func, args, kwargs, found)
    return args[0] if func is aten.copy_.default else found


class PretendDevice(TorchDispatchMode):
    """Within, ``pretend`` is a device, and the best there is; ``events`` lists "to device", "to host" and "wait"."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.events)

    def __enter__(self) -> PretendDevice:
        global _ON
        _ON += 1
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(list, device=...) is made on the CPU, then copied
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _ON
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        _ON -= 1
