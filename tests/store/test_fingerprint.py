import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pisco_index.errors import FingerprintMismatchError, StoreError
from pisco_index.store import Fingerprint

components = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), st.text("ab\u00e9\U0001f600", max_size=3)
)


@given(components)
def test_json_and_pickle_round_trip(parts):
    original = Fingerprint(parts)
    for copy in (Fingerprint.from_json(original.to_json()), pickle.loads(pickle.dumps(original))):
        assert copy == original
        assert copy.digest == original.digest
        assert hash(copy) == hash(original)


@given(components, components)
def test_digests_are_equal_exactly_when_nothing_differs(a, b):
    one, two = Fingerprint(a), Fingerprint(b)
    assert (one.digest == two.digest) == (not one.differences(two)) == (a == b)


def test_the_digest_ignores_order_and_never_changes():
    one = Fingerprint({"rate": "16", "weights": "é"})
    assert one.digest == Fingerprint({"weights": "é", "rate": "16"}).digest == "3f00ed12db540e69e68498f8c35701cd"


def test_differences_name_each_component():
    one = Fingerprint({"same": "1", "rate": "16", "mine": "x"})
    two = Fingerprint({"same": "1", "rate": "128", "theirs": "y"})
    assert one.differences(two) == ["mine: x | (absent)", "rate: 16 | 128", "theirs: (absent) | y"]


def test_a_mismatch_shows_both_digests_and_what_differs():
    one, two = Fingerprint({"rate": "16"}), Fingerprint({"rate": "128"})
    one.require_equal(one, "itself")
    with pytest.raises(FingerprintMismatchError) as caught:
        one.require_equal(two, "the decoder checkpoint")
    for part in (one.digest, two.digest, "the decoder checkpoint", "rate: 16 | 128"):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"rate": 16}'])
def test_what_is_no_fingerprint_is_refused(text):
    with pytest.raises(StoreError, match="fingerprint"):
        Fingerprint.from_json(text)


def test_a_family_that_is_not_stated_is_pisco():
    stored, given = Fingerprint({"rate": "16"}), Fingerprint({"rate": "16", "family": "cocom"})
    assert (stored.family, given.family) == ("pisco", "cocom")
    assert stored.differences(given) == ["family: pisco | cocom"]
