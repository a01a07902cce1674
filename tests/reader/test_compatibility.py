"""A store is read only with the checkpoint that it was built with."""

from types import SimpleNamespace

import pytest

from pisco_index import Reader, open_checkpoint
from pisco_index.errors import FingerprintMismatchError
from pisco_index.reader.compatibility import require_checkpoint


def test_the_checkpoint_of_a_store_is_accepted(hidden_store, checkpoint):
    with Reader(hidden_store) as reader:
        require_checkpoint(reader, open_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compressor": "other"}, r"They differ in compressor: \w+ \| other \(store \| checkpoint\)"),
        ({"base": "other", "rate": "4"}, r"They differ in base:  \| other; rate: 8 \| 4 \(store"),
    ],
)
def test_another_checkpoint_is_refused_with_what_differs(hidden_store, checkpoint, change, message):
    identity = dict(open_checkpoint(checkpoint).identity) | change
    with Reader(hidden_store) as reader, pytest.raises(FingerprintMismatchError, match=message):
        require_checkpoint(reader, SimpleNamespace(path="folder", identity=identity, file_identity=identity))
