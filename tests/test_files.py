"""Atomic writing, and who owns an output folder."""

from __future__ import annotations

import os

import pytest
import torch

from lr_gym.files import write_atomically
from lr_gym.run_folder import RunFolder, RunFolderError


def test_write_replaces_the_whole_file(tmp_path):
    file = tmp_path / "new" / "file"
    for content in (b"long content", b"short"):
        write_atomically(file, content)
        assert file.read_bytes() == content
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, b"old")

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    first = RunFolder(tmp_path, {"seed": 0}, resume=False)
    with pytest.raises(RunFolderError, match="in use"):
        RunFolder(tmp_path, {"seed": 0}, resume=True)
    first.close()
    RunFolder(tmp_path, {"seed": 0}, resume=True).close()


def test_a_nested_argument_that_differs_is_named(tmp_path):
    RunFolder(tmp_path, {"seed": 0, "ppo": {"gamma": 1.0}}, resume=False).close()
    with pytest.raises(RunFolderError, match=r"ppo\.gamma=1\.0, not 0\.9"):
        RunFolder(tmp_path, {"seed": 0, "ppo": {"gamma": 0.9}}, resume=True)
    RunFolder(tmp_path, {"seed": 0, "ppo": {"gamma": 1.0}}, resume=True).close()


def test_what_a_killed_writer_left_is_removed(tmp_path):
    first = RunFolder(tmp_path, {"seed": 0}, resume=False)
    first.save_checkpoint({"x": torch.ones(2)})
    first.close()
    (tmp_path / ".checkpoint.pt.abc.unfinished").write_bytes(b"half")
    again = RunFolder(tmp_path, {"seed": 0}, resume=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".lock",
        "args.json",
        "checkpoint.pt",
    ]
    checkpoint = again.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint["x"].tolist() == [1.0, 1.0]
    again.close()
