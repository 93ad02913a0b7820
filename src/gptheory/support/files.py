"""Files that are whole or absent, and say where they come from.

An arrays file is a safetensors file whose header carries a JSON record and a digest of everything
in it. Nothing here can run code from a file, as ``torch.load`` could.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "gptheory-1"
PROVENANCE = ("gptheory", "torch", "numpy", "scipy")


class DamagedFileError(ValueError):
    """A file is not what was written: cut short, changed, or of another kind."""


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace a file by ``content`` so that every reader sees the old file or the new, whole.

    The content goes to a temporary file beside it, reaches the disk, and takes the file's name.
    Whoever dies on the way leaves the old file as it was.

    Args:
        path: the file, which keeps its permissions, or a link to it; missing folders are made.
        content: all of its bytes.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    # a temporary file is private, the result need not be
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_json(value: object, **layout: Any) -> str:
    """The JSON text of a value; numpy's numbers in it count as Python's.

    Args:
        value: anything :func:`json.dumps` takes, or holding such and numbers of numpy.
        layout: options of :func:`json.dumps`.

    Raises:
        TypeError: for anything else.
    """
    return json.dumps(value, default=_plain, **layout)


def digest(*parts: object) -> str:
    """SHA-256 of bytes, tensors (dtype, shape and values) and JSON values, in order.

    Args:
        parts: anything :func:`to_json` takes, bytes, or tensors.

    Returns:
        64 hexadecimal digits, the same on every machine.
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            array = part.detach().cpu().contiguous()
            total.update(f"{array.dtype} {tuple(array.shape)}".encode())
            part = array.reshape(-1).view(torch.uint8).numpy().tobytes()
        if not isinstance(part, bytes):
            part = to_json(part, sort_keys=True).encode()
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def save_arrays(path: str | Path, arrays: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write named tensors and a record, atomically.

    Args:
        path: the file.
        arrays: name -> tensor of any dtype and device.
        record: JSON values, numbers without loss.
    """
    write_atomically(path, packed(arrays, record))


def packed(arrays: Mapping[str, Tensor], record: Mapping[str, Any]) -> bytes:
    """The content of the file that :func:`save_arrays` writes: equal bytes for equal content."""
    # copies: safetensors refuses tensors that share memory
    layout = torch.contiguous_format
    arrays = {k: x.detach().cpu().clone(memory_format=layout) for k, x in arrays.items()}
    text = to_json(record)
    header = {"format": FORMAT, "record": text, "digest": _digest(arrays, text)}
    return _canonical(save(arrays, metadata=header))


def _canonical(content: bytes) -> bytes:
    """The same safetensors file with the entries of its header in order.

    safetensors writes those of the metadata in another order at every call. The format: the length
    of the header in 8 bytes, little-endian, the header in JSON, padded with spaces to a multiple of
    8, and the data, whose offsets count from the header's end.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = to_json(
        json.loads(content[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def load_arrays(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_arrays` wrote, and verify it.

    Args:
        path: the file.

    Returns:
        The arrays (on the CPU) and the record.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if it is damaged or was not written by :func:`save_arrays`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged or no safetensors file: {error}") from None
    if header.get("format") != FORMAT:
        raise DamagedFileError(f"{path} was not written by gptheory: it has no record")
    if header.get("digest") != _digest(arrays, header.get("record", "")):
        raise DamagedFileError(f"{path} is damaged: its contents do not match its digest")
    return arrays, json.loads(header["record"])


def sealed(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """The content of a file that holds a record and its digest: see :func:`unsealed`.

    Args:
        record: JSON values.
        indent: of the text.
    """
    record = json.loads(to_json(record))
    return (to_json({**record, "digest": digest(record)}, indent=indent) + "\n").encode()


def unsealed(path: str | Path) -> dict[str, Any]:
    """The record in a file, verified.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedFileError: if its content did not come from :func:`sealed`.
    """
    try:
        record = json.loads(Path(path).read_bytes())
        claimed = record.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DamagedFileError(f"{path} is damaged: it is no record") from None
    if claimed != digest(record):
        raise DamagedFileError(f"{path} is damaged: its contents do not match its digest")
    return record


def remembered(
    path: str | Path,
    identity: Mapping[str, Any],
    compute: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Compute arrays once: a second call, in this process or a later one, reads them.

    Args:
        path: the file that keeps them.
        identity: all that they depend on (JSON values); a file of another identity is replaced.
        compute: makes the arrays.

    Returns:
        The arrays, on the CPU.

    Raises:
        DamagedFileError: if the file is damaged.
    """
    identity = json.loads(to_json(identity))
    if not Path(path).exists() or load_arrays(path)[1] != identity:
        save_arrays(path, compute(), identity)
    return load_arrays(path)[0]


def provenance(device: torch.device | str = "cpu") -> dict[str, str]:
    """Versions of what computes, and where: part of every record.

    Args:
        device: the device that does the work.

    Returns:
        name -> version, with ``python``, ``machine`` and ``device``.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda" and torch.cuda.is_available()
    return {
        **{name: _version(name) for name in PROVENANCE},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
    }


def _version(name: str) -> str:
    """Of an installed package; of this one, if it runs from its sources, what they say."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        sources = Path(__file__).parents[2] / "pyproject.toml"
        if not sources.exists():
            return "not installed"
        return f"{tomllib.loads(sources.read_text())['project']['version']}, not installed"


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected JSON values or numbers of numpy, got {type(value).__name__}")


def _digest(arrays: Mapping[str, Tensor], text: str) -> str:
    return digest(text, *(part for name in sorted(arrays) for part in (name, arrays[name])))
