"""Results that carry their provenance: arrays in one file, everything else in a record beside it.

``NAME.safetensors`` holds tensors, ``NAME.json`` settings, numbers, tables, versions, device,
duration, the digest of the arrays and its own. Small results travel inside the package, so that
the book draws paper-scale figures on any laptop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from ..support.files import (
    DamagedFileError,
    digest,
    load_arrays,
    packed,
    sealed,
    unsealed,
    write_atomically,
)

# The sampler that the committed results were measured with: with the default of today their numbers
# could not be computed again.
SAMPLER = {"solver": "dpmpp-2m", "spacing": "quadratic", "t_min": 0.005}
SIZE_LIMIT = 1_500_000  # bytes of a result that travels inside the package
DIGITS = 6  # significant, of the numbers in tables


@dataclass(frozen=True)
class Result:
    """A stored result.

    Attributes:
        name: its name.
        arrays: name -> tensor, as stored (often in half precision).
        record: ``settings``, ``numbers``, ``tables``, ``provenance``, ``seconds``, digests.
    """

    name: str
    arrays: dict[str, Tensor]
    record: dict[str, Any]

    @property
    def numbers(self) -> dict[str, Any]:
        """Measured values by name."""
        return self.record["numbers"]

    def table(self, name: str) -> pd.DataFrame:
        """One of the tables.

        Raises:
            KeyError: if there is none of that name; says which there are.
        """
        tables = self.record["tables"]
        if name not in tables:
            raise KeyError(f"{self.name} has no table {name!r}, only {', '.join(sorted(tables))}")
        return pd.DataFrame(tables[name])


def save_result(
    folder: str | Path,
    name: str,
    arrays: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    numbers: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    provenance: Mapping[str, str],
    seconds: float,
) -> Path:
    """Store a result. Whoever is killed in between leaves the old one or the new one, whole.

    Args:
        folder: where.
        name: of both files.
        arrays: name -> tensor; cast to half precision where that is enough.
        settings: all that decides the result, seeds included (JSON values).
        numbers: measured values (JSON values).
        tables: data frames, rounded to six significant digits.
        provenance: see :func:`.provenance`.
        seconds: what it took to compute.

    Returns:
        The record's path, ``folder/name.json``.
    """
    content = packed(arrays, {"result": name})
    record = {
        "name": name,
        "settings": dict(settings),
        "numbers": dict(numbers),
        "tables": {key: _columns(table) for key, table in tables.items()},
        "provenance": dict(provenance),
        "seconds": round(seconds, 1),
        "arrays": digest(content),
    }
    return _put(Path(folder), name, content, sealed(record, indent=1))


def move_result(record: Path, folder: str | Path) -> Path:
    """Move a result to another folder, where it replaces one of its name as if saved there.

    Args:
        record: what :func:`save_result` returned.
        folder: where to.

    Returns:
        The record's new path.
    """
    arrays = record.with_suffix(".safetensors")
    moved = _put(Path(folder), record.stem, arrays.read_bytes(), record.read_bytes())
    if not moved.samefile(record):
        record.unlink()
        arrays.unlink()
    return moved


def load_result(name: str, folder: str | Path | None = None) -> Result:
    """Load a result and verify it.

    Args:
        name: see :func:`stored_results`.
        folder: where it lies; by default inside the package.

    Returns:
        The result.

    Raises:
        FileNotFoundError: if there is no such result; says which there are.
        DamagedFileError: if a file is not what was written.
    """
    folder = _inside() if folder is None else Path(folder)
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(stored_results(folder)) or "none"
        raise FileNotFoundError(f"there is no result {name!r} in {folder}; there are: {known}")
    record = unsealed(path)
    arrays_path = _waiting(folder, name, record["arrays"])
    if not arrays_path.is_file():
        arrays_path = folder / f"{name}.safetensors"
    arrays, _ = load_arrays(arrays_path)
    if digest(arrays_path.read_bytes()) != record["arrays"]:
        raise DamagedFileError(f"{arrays_path} belongs to another run than {path}")
    return Result(name, arrays, record)


def stored_results(folder: str | Path | None = None) -> list[str]:
    """Names of the results in a folder, by default those inside the package."""
    folder = _inside() if folder is None else Path(folder)
    return sorted(p.stem for p in folder.glob("*.json")) if folder.is_dir() else []


def _inside() -> Path:
    return Path(str(resources.files(__package__))) / "stored"


def _put(folder: Path, name: str, arrays: bytes, record: bytes) -> Path:
    """Write both files so that whichever record is there has its arrays, at every moment."""
    path, waiting = folder / f"{name}.json", _waiting(folder, name, digest(arrays))
    write_atomically(waiting, arrays)
    write_atomically(path, record)
    write_atomically(folder / f"{name}.safetensors", arrays)
    for left in folder.glob(f"{name}.{'[0-9a-f]' * 12}.arrays"):  # ours, and of killed ones
        left.unlink(missing_ok=True)
    return path


def _waiting(folder: Path, name: str, arrays: str) -> Path:
    """Where arrays lie until their record is there: beside those of the record before."""
    return folder / f"{name}.{arrays[:12]}.arrays"


def _columns(table: pd.DataFrame) -> dict[str, list]:
    rounded = {}
    for name, column in table.items():
        values = column.tolist()
        if column.dtype.kind == "f":
            # JSON has no NaN; a data frame turns None back into it
            values = [None if math.isnan(x) else float(f"{x:.{DIGITS}g}") for x in values]
        rounded[str(name)] = values
    return rounded
