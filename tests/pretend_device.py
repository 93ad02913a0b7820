"""A pretend accelerator on a CPU-only torch: real numbers, and CUDA's rules about devices.

    import pretend_device
    pretend_device.enter()                 # once, before the first backward pass of the process
    torch.randn(3, device="gpu")           # device gpu:0, computed on the CPU

A tensor of the device is a wrapper around a CPU tensor. Every operation passes through ``_run``,
which refuses what CUDA refuses: tensors on two devices, generators of the other one, numbers handed
to numpy. The rules come from torch's own list of operators, which says for each whether its tensors
are checked. ``counts`` says how many operations ran on the device, how many copies were made to it
and from it, and how often the host had to wait for a number.

What it cannot see: other rounding, kernels, asynchrony, streams of random numbers, torch.compile,
graphs, and whatever asks for the name ``cuda``. Activation checkpointing does not survive the
wrapper; here it is a plain call.

As a pytest plugin (``make test-devices``), ``-p pretend_device -k "gpu or pretend"`` runs the
suite's device cases on it. It needs a private function of torch; ``missing()`` says whether it is
there.
"""

from __future__ import annotations

import collections
import functools
import pathlib
import re
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import backend_registration, checkpoint
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "gpu"
CPU = torch.device("cpu")
SETUP = "_setup_privateuseone_for_python_backend"
Operator = Any  # torch has no public name for the type of aten's functions

counts: collections.Counter[str] = collections.Counter()


class WrongDeviceError(RuntimeError):
    """What CUDA would refuse."""


def missing() -> str:
    """Why there can be no pretend device here; empty where there can."""
    if hasattr(backend_registration, SETUP):
        return ""
    return f"torch {torch.__version__} has no torch.utils.backend_registration.{SETUP} (2.11 has)"


# ---- the tensor ---------------------------------------------------------------------------------


class PretendTensor(torch.Tensor):
    """Says that it is on the pretend device, and keeps its numbers in a CPU tensor."""

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> PretendTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(),
            dtype=real.dtype, layout=real.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.real_ = real
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Operator, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return repr(self.detach().real_)[:-1] + f", device='{self.device}')"

    def __format__(self, spec: str) -> str:  # torch's own asks for type(self) is Tensor
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy"
            " the tensor to host memory first."
        )

    def __array__(self, dtype: object = None, copy: object = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:  # the wrapper itself has none
        return self.real_.untyped_storage()

    @property
    def data(self) -> torch.Tensor:
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: PretendTensor) -> None:  # torch swaps the half that is written in C++
        torch.Tensor.data.__set__(self, value)
        self.real_ = value.real_


# ---- generators ---------------------------------------------------------------------------------

_CpuGenerator = torch.Generator
_of_the_device: dict[int, torch.device] = {}  # torch makes new Python objects: go by the pointer


class PretendGenerator(_CpuGenerator):
    """A CPU generator that says that it is on the device it was asked for."""

    def __new__(cls, device: torch.device | str = "cpu") -> PretendGenerator:
        device = torch.device(device)
        if device.type != NAME:
            return super().__new__(cls, device=device)
        made = super().__new__(cls, device="cpu")
        _of_the_device[made._cdata] = torch.device(NAME, device.index or 0)
        weakref.finalize(made, _of_the_device.pop, made._cdata, None)
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return _of_the_device.get(self._cdata) or _CpuGenerator.device.__get__(self)


# ---- the rules ----------------------------------------------------------------------------------

ANYWHERE = {  # operators that may have tensors on two devices
    "copy_", "_to_copy", "_local_scalar_dense", "lift_fresh", "lift", "detach", "set_",
    "record_stream", "is_same_size",
}  # fmt: skip
INDEXING = {
    "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put",
}  # fmt: skip
FUSED = {"_fused_adamw_", "_fused_adam_", "_fused_sgd_"}


@functools.cache
def _unchecked() -> dict[str, str]:
    """Operators whose tensors torch does not check one by one, and why, from its own list."""
    import torchgen

    path = pathlib.Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    found, name = {}, ""
    for line in path.read_text().splitlines():
        if line.startswith("- func: "):
            name = line[8:].split("(")[0].strip()
        elif match := re.match(r"\s+device_check: NoCheck\s*(#.*)?", line):
            found[name] = match[1] or ""
    for key in [key for key in found if key.endswith("out")]:  # x.out carries the flag of x and x_
        base, _, overload = key.partition(".")
        stem = overload.removesuffix("out").rstrip("_")
        names = {base, f"{base}_"} if not stem else {f"{base}.{stem}", f"{base}_.{stem}"}
        for other in names:
            found.setdefault(other, found[key])
    return found


def _require_one_device(func: Operator, args: tuple, kwargs: dict) -> None:
    """Raise as CUDA would for tensors on two devices."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here, there = _split(tensors)
    name = _name(func)
    if not here or not there or name in ANYWHERE:
        return
    if name in INDEXING:
        _require_index(func, *args[:3])
        return
    reason = _unchecked().get(f"{name}.{func._schema.overload_name}".rstrip("."), "")
    if re.search("TensorIterator|foreach", reason) and name not in FUSED:
        # tensors of the CPU without dimensions count as numbers, unless they are written to
        written = {id(x) for x in _written(func, args, kwargs)}
        there = [x for x in there if x.dim() > 0 or id(x) in written]
    if there:
        raise WrongDeviceError(
            "Expected all tensors to be on the same device, but found at least two devices,"
            f" {NAME}:0 and cpu! ({func}: {'; '.join(map(_described, (here + there)[:4]))})"
        )


def _require_index(func: Operator, home: Any, indices: Any, values: Any = None) -> None:
    """A tensor of the device takes indices of the CPU and values that are numbers, not arrays."""
    if isinstance(home, PretendTensor):
        wrong = isinstance(values, torch.Tensor) and not isinstance(values, PretendTensor)
        wrong = wrong and values.dim() > 0
    else:
        if any(isinstance(index, PretendTensor) for index in indices):
            raise WrongDeviceError(
                f"{func}: indices should be either on cpu or on the same device as the indexed"
                " tensor (cpu)"
            )
        wrong = isinstance(values, PretendTensor)
    if wrong:
        raise WrongDeviceError(f"{func}: value {_described(values)} into {_described(home)}")


def _require_generator(func: Operator, args: tuple, kwargs: dict, on: bool) -> None:
    for generator in (x for x in (*args, *kwargs.values()) if isinstance(x, _CpuGenerator)):
        found = NAME if generator._cdata in _of_the_device else "cpu"
        wanted = NAME if on else "cpu"
        if found != wanted:
            raise WrongDeviceError(
                f"Expected a '{wanted}' device type for generator but found '{found}' ({func})"
            )


def _split(tensors: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    here = [x for x in tensors if isinstance(x, PretendTensor)]
    return here, [x for x in tensors if not isinstance(x, PretendTensor)]


def _name(func: Operator) -> str:
    return func._schema.name.split("::")[1]


def _described(x: torch.Tensor) -> str:
    return f"{'x'.join(map(str, x.shape)) or '0-dim'} on {x.device}"


def _written(func: Operator, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """Tensors among the arguments that the operator writes to."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(kwargs.get(argument.name, args[i] if i < len(args) else None))
    return [x for x in tree_leaves(found) if isinstance(x, torch.Tensor)]


# ---- running an operation -----------------------------------------------------------------------


def _run(func: Operator, args: tuple, kwargs: dict) -> object:
    """Check an operation, count it, and compute it on the CPU."""
    here = any(isinstance(x, PretendTensor) for x in tree_leaves((args, kwargs)))
    asked = kwargs.get("device")
    on = here if asked is None else torch.device(asked).type == NAME
    if not (here or on or any(isinstance(x, _CpuGenerator) for x in kwargs.values())):
        return func(*args, **kwargs)
    _require_one_device(func, args, kwargs)
    _require_generator(func, args, kwargs, on)
    if here or on:
        _count(_name(func), args, here, on)
    if _name(func) == "_fused_sdp_choice":
        return 0  # the plain formula; the device's own kernels are not here
    kwargs = {k: x for k, x in kwargs.items() if k != "pin_memory"}
    real_args, real_kwargs = tree_map(_inner, (args, kwargs))
    out = func(*real_args, **real_kwargs)
    returns = func._schema.returns
    written = _written(func, args, kwargs)
    if written and returns and all(r.alias_info and r.alias_info.is_write for r in returns):
        return _in_place(func, args, kwargs, written)
    return tree_map(_outer, out) if on else out


def _inner(x: object) -> object:
    if isinstance(x, PretendTensor):
        return x.real_
    return CPU if isinstance(x, torch.device) and x.type == NAME else x


def _outer(x: object) -> object:
    wrapped = isinstance(x, PretendTensor) or not isinstance(x, torch.Tensor)
    return x if wrapped else PretendTensor(x)


def _in_place(func: Operator, args: tuple, kwargs: dict, written: list[torch.Tensor]) -> object:
    """What an operation returns that wrote into its arguments: these."""
    if torch.Tag.inplace_view in func.tags:  # squeeze_, say: the wrapper changes as the inner did
        with no_dispatch():
            before = torch._C._meta_in_tls_dispatch_include()
            torch._C._set_meta_in_tls_dispatch_include(True)
            try:
                func(*args, **kwargs)
            finally:
                torch._C._set_meta_in_tls_dispatch_include(before)
    assert all(x.real_.shape == x.shape for x in written if isinstance(x, PretendTensor)), func
    return written[0] if len(func._schema.returns) == 1 else tuple(written)


def _count(name: str, args: tuple, here: bool, on: bool) -> None:
    counts["operations"] += 1
    there = isinstance(args[0], PretendTensor) if args else on
    if name == "_to_copy":
        source, target = here, on
    elif name == "copy_":
        source, target = isinstance(args[1], PretendTensor), there
    else:
        source = target = on
    counts["to the device"] += target and not source
    counts["from the device"] += source and not target
    counts["waits"] += name == "_local_scalar_dense"


# ---- the device ---------------------------------------------------------------------------------


class _Mode(TorchDispatchMode):
    """Sees the operations that make tensors from none."""

    def __torch_dispatch__(
        self, func: Operator, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return _run(func, args, kwargs or {})


def _module() -> types.SimpleNamespace:
    """``torch.gpu``: what torch asks of the module of a device, with the CPU's random state."""
    state = torch.random.default_generator
    return types.SimpleNamespace(
        is_initialized=lambda: True, is_available=lambda: True, _is_in_bad_fork=lambda: False,
        current_device=lambda: 0, device_count=lambda: 1,
        manual_seed=lambda seed: None, manual_seed_all=lambda seed: None,
        get_rng_state=lambda device=None: state.get_state(),
        set_rng_state=lambda new, device=None: state.set_state(new),
        get_amp_supported_dtype=lambda: [torch.bfloat16, torch.float16],
        synchronize=lambda device=None: counts.update(["synchronisations"]),
    )  # fmt: skip


_autocast = torch.library.Library("_", "IMPL")  # it casts nothing here, as on no device unknown


@functools.cache
def enter() -> None:
    """Register the device, for the rest of the process, and let all operations pass through it.

    Before the first backward pass, since torch starts its threads then; and before modules that
    import ``torch.utils.checkpoint.checkpoint``.
    """
    getattr(backend_registration, SETUP)(NAME, backend_module=_module())
    _autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    checkpoint.checkpoint = _without_recomputation
    torch.Generator, torch.tensor = PretendGenerator, _tensor
    # torch.tensor(..., device=...) makes a CPU tensor and moves it where a mode sees it
    torch._C._set_only_lift_cpu_tensors(True)
    _Mode().__enter__()


def _without_recomputation(function: Callable, *args: object, **_options: object) -> object:
    return function(*args)


_cpu_tensor = torch.tensor


@functools.wraps(torch.tensor)
def _tensor(data: object, **options: object) -> torch.Tensor:
    """torch.tensor reads numbers out of tensors where no mode sees it."""
    if isinstance(data, PretendTensor):
        copy = data.detach().clone()
        return copy.to(options.get("device", data.device), options.get("dtype"))
    return _cpu_tensor(_numbers(data), **options)


def _numbers(data: object) -> object:
    if type(data) in (list, tuple):
        return [_numbers(x) for x in data]
    return data.item() if isinstance(data, PretendTensor) else data


# ---- the plugin ---------------------------------------------------------------------------------


def pytest_configure(config: object) -> None:
    """Let the suite's device cases run on it."""
    if missing():
        return
    enter()
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import strategies

    strategies.DEVICES = ["cpu", NAME]


def pytest_report_header() -> str:
    """One line that says whether there is a device."""
    return f"pretend device: {f'NONE, skipped: {missing()}' if missing() else NAME}"
