"""Files that are whole or absent, digests, and where numbers come from."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from gptheory.support import files
from gptheory.support.files import (
    DamagedFileError,
    digest,
    load_arrays,
    packed,
    provenance,
    remembered,
    save_arrays,
    to_json,
    write_atomically,
)

ARRAYS = {
    "matrix": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "brain": torch.tensor([1.5], dtype=torch.bfloat16),
    "number": torch.tensor(7),
    "nothing": torch.empty(0, 3),
    "flags": torch.tensor([True, False]),
}
RECORD = {"third": 1 / 3, "words": ["α", None, True], "nested": {"1e-300": 1e-300}}


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    for content in (b"first", b"second, longer", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.skipif(sys.platform == "win32", reason="neither links nor permissions")
def test_a_link_stays_a_link_and_permissions_stay_what_they_are(tmp_path):
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    write_atomically(real, b"old")
    link.symlink_to(real)
    real.chmod(0o600)
    write_atomically(link, b"new")
    assert link.is_symlink() and real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert set(tmp_path.rglob("*")) == {real, real.parent, link}


@pytest.mark.parametrize("name", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(name, tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    """Otherwise a power cut could leave an empty file under the final name."""
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, f=original, n=name: (events.append(n), f(*a))[1])
    write_atomically(tmp_path / "file.bin", b"x")
    assert events == ["fsync", "replace"]


def test_readers_never_see_half_a_file(tmp_path):
    """A reader beside a writer: every read is one of the two contents, whole."""
    path, contents = tmp_path / "file.bin", (b"a" * 300_000, b"b" * 300_000)
    write_atomically(path, contents[0])
    done = threading.Event()

    def write():
        for k in range(40):
            write_atomically(path, contents[k % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set() or not reads:
        assert path.read_bytes() in contents
        reads += 1
    writer.join()


def test_arrays_and_record_come_back_bit_for_bit(tmp_path):
    save_arrays(tmp_path / "a", ARRAYS, RECORD)
    arrays, record = load_arrays(tmp_path / "a")
    assert record == RECORD and arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype and torch.equal(arrays[name], value), name


def test_equal_content_is_equal_bytes(tmp_path):
    """Twelve saves in this process and some in others; safetensors alone gives a handful."""
    contents = [packed(ARRAYS, RECORD) for _ in range(12)]
    turned = dict(reversed(ARRAYS.items()))
    assert {*contents, packed(turned, RECORD)} == {contents[0]}
    code = (
        "import sys, torch, gptheory.support.files as s;"
        "sys.stdout.write(s.digest(s.packed({'b': torch.ones(3), 'ä': torch.ones(2).half()}, {})))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in "012"
    }  # fmt: skip
    assert told == {digest(packed({"b": torch.ones(3), "ä": torch.ones(2).half()}, {}))}


def test_files_are_safetensors_files_for_every_reader(tmp_path):
    from safetensors.torch import load_file

    save_arrays(tmp_path / "a", ARRAYS, RECORD)
    found = load_file(tmp_path / "a")
    assert found.keys() == ARRAYS.keys()
    assert all(torch.equal(found[name], value) for name, value in ARRAYS.items())
    content = (tmp_path / "a").read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0 and list(json.loads(content[8 : 8 + size])) == sorted(
        [*found, "__metadata__"]
    )


def test_views_of_one_tensor_are_stored_as_they_are(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    parts = {"row": base[1], "column": base[:, 1], "turned": base.T, "all": base}
    save_arrays(tmp_path / "a", parts, {})
    arrays, _ = load_arrays(tmp_path / "a")
    assert all(torch.equal(arrays[name], part) for name, part in parts.items())
    assert arrays["turned"].is_contiguous()


def test_every_flipped_byte_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "a"
    save_arrays(path, ARRAYS, RECORD)
    content = path.read_bytes()
    for k in range(len(content)):
        damaged = bytearray(content)
        damaged[k] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError):
            load_arrays(path)
    for k in range(0, len(content), 7):
        path.write_bytes(content[:k])
        with pytest.raises(DamagedFileError):
            load_arrays(path)
    path.write_bytes(content)
    load_arrays(path)


def test_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save

    path = tmp_path / "a"
    path.write_bytes(save({"x": torch.zeros(2)}))
    with pytest.raises(DamagedFileError, match="not written by gptheory"):
        load_arrays(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_arrays(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path)


def test_digest_is_pinned_and_sees_every_part():
    assert digest(b"") == "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"
    x = torch.arange(6.0)
    parts = [
        (), (b"ab",), (b"a", b"b"), ("ab",), ({"a": 1},), ({"a": 2},), (x,), (-x,), (x.double(),),
        (x.reshape(2, 3),), (x.reshape(3, 2),), (x, x), (1,), (1.5,), (None,), (torch.tensor(1.5),),
    ]  # fmt: skip
    assert len({digest(*p) for p in parts}) == len(parts)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(x.reshape(2, 3).T) == digest(x.reshape(2, 3).T.contiguous())


def test_numbers_of_numpy_are_written_as_pythons(tmp_path):
    given = {"n": np.int64(3), "x": [np.float32(0.5), np.float64(0.1)], "yes": np.bool_(True)}
    plain = {"n": 3, "x": [0.5, 0.1], "yes": True}
    assert json.loads(to_json(given)) == plain and to_json(given) == json.dumps(plain)
    assert digest(given) == digest(plain)
    for path, record in ((tmp_path / "a", given), (tmp_path / "b", plain)):
        save_arrays(path, {}, record)
        assert load_arrays(path)[1] == plain
        remembered(path, record, lambda: pytest.fail("it was there"))
    with pytest.raises(TypeError, match=r"expected JSON values .* got set"):
        to_json({"n": {1}})


def test_remembered_arrays_are_computed_once_per_identity(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": torch.tensor([float(len(calls))])}

    path = tmp_path / "a"
    for identity, expected in [({"n": 1}, 1), ({"n": 1}, 1), ({"n": (2,)}, 2), ({"n": [2]}, 2)]:
        assert remembered(path, identity, compute)["x"].item() == expected
    path.write_bytes(b"x")
    with pytest.raises(DamagedFileError):
        remembered(path, {"n": 1}, compute)


def test_provenance_names_versions_and_device(monkeypatch):
    told = provenance()
    assert told["torch"] == torch.__version__ and told["device"] == "cpu"
    assert set(told) == {*files.PROVENANCE, "python", "machine", "device"}
    assert all(isinstance(value, str) and value for value in told.values())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert provenance("cuda:1")["device"] == "card 1"
