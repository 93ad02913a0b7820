"""Scale and device: what the environment says, and nothing silently else."""

from __future__ import annotations

import pytest
import torch

from gptheory.studies import full_size, load_result, reproduce
from gptheory.studies.reproduce import Experiment
from gptheory.support import session


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """The environment says nothing, and there is no GPU."""
    monkeypatch.delenv("GPTHEORY_SCALE", raising=False)
    monkeypatch.delenv("GPTHEORY_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_session_is_quick_unless_told(monkeypatch):
    assert session.scale() == "quick"
    monkeypatch.setenv("GPTHEORY_SCALE", "paper")
    assert session.scale() == "paper"


def test_an_unknown_scale_is_refused(monkeypatch):
    monkeypatch.setenv("GPTHEORY_SCALE", "huge")
    with pytest.raises(ValueError, match="must be one of quick, paper, got 'huge'"):
        session.scale()


def test_a_gpu_is_used_where_there_is_one_unless_the_environment_names_a_device(monkeypatch):
    assert session.choose_device() == torch.device("cpu")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda _, device: asked.append(device) or torch.zeros(0))
    session.choose_device()
    monkeypatch.setenv("GPTHEORY_DEVICE", "cpu")
    session.choose_device()
    session.choose_device("cuda:1")
    assert asked == ["cuda", "cpu", "cuda:1"]


def test_a_device_that_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        session.choose_device("abacus")


def test_the_opening_says_scale_device_and_time(monkeypatch, capsys):
    session.opening(seconds=20)
    session.opening(seconds=60, full_size=["fig1", "video"])
    monkeypatch.setenv("GPTHEORY_SCALE", "paper")
    session.opening(seconds=60, full_size=["fig1"])
    short, reads, runs = capsys.readouterr().out.splitlines()
    assert short == "quick scale on cpu: about 20 s"
    assert reads == "quick scale on cpu: about 60 s; fig1, video at full size from the package"
    assert runs.startswith("paper scale on cpu: about 60 s, and first fig1 at full size: minutes")


def test_full_size_reads_the_package_or_runs_the_experiment(monkeypatch, tmp_path):
    assert full_size("fig1", tmp_path).record == load_result("fig1-paper").record
    ran = []

    def study(settings, run):
        ran.append((settings, run.name, run.device.type))
        raise InterruptedError

    monkeypatch.setenv("GPTHEORY_SCALE", "paper")
    monkeypatch.setitem(
        reproduce.EXPERIMENTS, "fig1", Experiment("", study, {"quick": 1, "paper": 2})
    )
    with pytest.raises(InterruptedError):
        full_size("fig1", tmp_path)
    assert ran == [(2, "fig1-paper", "cpu")]
