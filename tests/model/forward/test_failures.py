"""Failures that libraries report in their own words, and code that an interrupted compiler leaves."""

import struct

import pytest
import torch
from filelock import FileLock

from pisco_index.model.forward.failures import first_line, is_compiler_failure, is_out_of_memory, remove_damaged_code


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("HIP error: hipErrorOutOfMemory"),
    ],
    ids=str,
)
def test_a_full_device_is_recognised(error):
    assert is_out_of_memory(error)
    wrapped = RuntimeError("a layer failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), ValueError("x"), KeyError()]
)
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)
    assert not is_compiler_failure(error)


def test_a_compiler_failure_is_recognised():
    from torch._inductor.exc import CppCompileError

    error = CppCompileError(["g++", "main.cpp"], "fatal error: too many\nlines")
    assert is_compiler_failure(error)
    assert "\n" not in first_line(error)


def library(missing=0):
    """A file with the header of a 64-bit library, and a table of two sections at its end, without the last bytes."""
    head = struct.pack("<16s24xQ10x3H", b"\x7fELF\x02", 100, 64, 2, 0)
    content = head.ljust(100 + 2 * 64, b"\x01")
    return content[: len(content) - missing]


def test_incomplete_code_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "ab").mkdir()
    (tmp_path / "locks").mkdir()
    contents = {
        "empty.main.so": b"",
        "short.main.so": library(missing=1),
        "zeros.main.so": bytes(300),
        "header.h.gch": b"",
        "whole.main.so": library(),
        "written.main.so": b"",
    }
    for name, content in contents.items():
        (tmp_path / "ab" / name).write_bytes(content)
    (tmp_path / "locks" / "empty.lock").touch()
    # Another process writes this one.
    with FileLock(tmp_path / "locks" / "written.lock"):
        removed = remove_damaged_code()
    assert {path.name for path in removed} == {"empty.main.so", "short.main.so", "zeros.main.so", "header.h.gch"}
    assert sorted(path.name for path in (tmp_path / "ab").iterdir()) == ["whole.main.so", "written.main.so"]
