"""A write that breaks off leaves the earlier file, and nothing else."""

import errno
import os

import numpy as np
import pytest

from lab.atomic import write_arrays


def test_arrays_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "a.npz"
    write_arrays(path, path=np.arange(3), about="three")
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_arrays(path, path=np.arange(4))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
