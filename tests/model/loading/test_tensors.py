"""Files of tensors made to do harm: each is refused by name, and nothing in it runs or takes memory."""

import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import torch

from pisco_index.model.loading.tensors import load_tensors

HUGE = 10**12
TOUCHED = "touched"


class Touches:
    """An object whose pickle runs a shell command when it is read."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Call:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def archive(pickled, *records):
    """A file as torch.save writes it, from a pickle and the bytes of its storages."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/version", "3\n")
        for number, record in enumerate(records):
            made.writestr(f"archive/data/{number}", record)
    return file.getvalue()


def pickled(values):
    """A pickle that refers to storages as torch's pickles do; tuples of (type, length) stand for them."""

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if isinstance(value, tuple) and len(value) == 2 and value[0] is torch.FloatStorage:
                return ("storage", value[0], "0", "cpu", value[1])
            return None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(values)
    return file.getvalue()


def tensor(held, shape, strides):
    storage = (torch.FloatStorage, held)
    return Call(torch._utils._rebuild_tensor_v2, storage, 0, shape, strides, False, OrderedDict())


def tarred(content):
    """A file in torch's oldest format."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def legacy(values):
    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def saved(values):
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def deflated(size):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", pickled({"0.bias": tensor(size // 4, (size // 4,), (1,))}))
        made.writestr("archive/version", "3\n")
        made.writestr("archive/data/0", bytes(size))
    return file.getvalue()


# Files in the place of a file of tensors. Touches("touched") is relative to the working folder.
FILES = {
    "a bare pickle": lambda: pickle.dumps(Touches(TOUCHED)),
    "a pickle of the oldest protocol": lambda: pickle.dumps(Touches(TOUCHED), protocol=0),
    "an archive": lambda: archive(pickle.dumps(Touches(TOUCHED), protocol=2)),
    "an archive of a newer protocol": lambda: archive(pickle.dumps(Touches(TOUCHED), protocol=5)),
    "a file that torch wrote": lambda: saved(Touches(TOUCHED)),
    "beside tensors": lambda: saved({"0.bias": torch.zeros(2), "more": Touches(TOUCHED)}),
    "deep inside": lambda: archive(pickle.dumps({"a": [{"b": ({"c": Touches(TOUCHED)},)}]}, protocol=2)),
    "as a key": lambda: archive(pickle.dumps({Touches(TOUCHED): 1}, protocol=2)),
    "an instance that is given its state": lambda: archive(b"\x80\x02cos\nsystem\n)\x81}X\x01\0\0\0a" + b"K\1sb."),
    "the legacy format": lambda: legacy({"0.weight": Touches(TOUCHED)}),
    "the legacy format, of tensors": lambda: legacy({"0.weight": torch.zeros(2)}),
    "a tar": lambda: tarred(pickle.dumps(Touches(TOUCHED), protocol=2)),
    "a TorchScript archive": lambda: archive(b"", b"").replace(b"data.pkl", b"code.pkl"),
    "two pickles in one archive": lambda: archive(pickle.dumps({}, protocol=2)) + archive(b"x"),
    "an array of bytes of any length": lambda: archive(pickle.dumps({"0.bias": Call(bytearray, HUGE)}, protocol=2)),
    "a tensor that is made": lambda: archive(pickle.dumps({"0.bias": Call(torch.Tensor, HUGE)}, protocol=2)),
    "a storage longer than its bytes": lambda: archive(pickled({"0.bias": tensor(HUGE, (HUGE,), (1,))}), bytes(16)),
    "a tensor longer than its storage": lambda: archive(pickled({"0.bias": tensor(4, (HUGE,), (1,))}), bytes(16)),
    "one number that fills a tensor": lambda: archive(pickled({"0.bias": tensor(4, (HUGE,), (0,))}), bytes(16)),
    "a storage of negative length": lambda: archive(pickled({"0.bias": tensor(-4, (4,), (1,))}), bytes(16)),
    "a tensor on no device": lambda: archive(
        pickled({"0.bias": Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (HUGE,), (1,), False)})
    ),
    "a bomb": lambda: deflated(64 << 20),
    "half a file": lambda: saved({"0.bias": torch.zeros(2)})[:400],
    "no bytes": lambda: b"",
    "text": lambda: b"<html>",
}


@pytest.mark.parametrize("kind", FILES)
def test_only_plain_tensors_are_read(tmp_path, refused, kind):
    path = tmp_path / "connector.pt"
    path.write_bytes(FILES[kind]())
    refused(f"^{path}: .*(refused, nothing of it was run|damaged|more than the file holds)", load_tensors, path)


def test_these_pickles_run_if_they_are_trusted(tmp_path):
    torch.load(io.BytesIO(archive(pickle.dumps(Touches(tmp_path / TOUCHED), protocol=2))), weights_only=False)
    (tmp_path / TOUCHED).unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds list; expected a dictionary"),
        ({"0.bias": 3}, "'0.bias' is no named tensor"),
        ({3: torch.zeros(2)}, "3 is no named tensor"),
    ],
)
def test_tensors_have_names(tmp_path, refused, content, message):
    path = tmp_path / "connector.pt"
    torch.save(content, path)
    refused(f"^{path}: {message}", load_tensors, path)


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(128, dtype=torch.complex64),
        torch.zeros(128, dtype=torch.int64),
        torch.zeros(128, dtype=torch.bool),
        torch.zeros(128).to(torch.float8_e4m3fn),
        torch.full((128,), float("nan")),
        torch.full((128,), float("-inf")),
    ],
    ids=lambda values: f"{values.dtype} {values.flatten()[0]}",
)
def test_numbers_are_floating_and_finite(tmp_path, refused, values):
    path = tmp_path / "connector.pt"
    torch.save({"0.weight": torch.zeros(2), "0.bias": values}, path)
    refused(f"^{path}: (0.bias (holds|has values that are not finite)|refused)", load_tensors, path)


def test_tensors_come_back(tmp_path):
    state = {"a": torch.randn(3, 2), "b": torch.randn(4).bfloat16(), "c": torch.zeros(0)}
    torch.save(state, tmp_path / "state.pt")
    found = load_tensors(tmp_path / "state.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], values) for name, values in state.items())
