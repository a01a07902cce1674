import pytest
import torch

from pisco_index.model.forward.attention import Spans, padded_attention

LENGTHS = [5, 1, 0, 17, 8]
LAST = [2, 1, 0, 17, 3]


def spans(lengths):
    starts = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
    return Spans.of(starts, max(lengths))


def by_definition(query, key, value, *, scale, causal, window, softcap=None):
    """Attention computed passage by passage, query by query and head by head; the queries are the last tokens."""
    out = torch.zeros_like(query)
    groups = query.shape[1] // key.shape[1]
    for row in range(len(query)):
        place = len(key) - len(query) + row
        seen = [
            other
            for other in range(len(key))
            if (other <= place or not causal) and (window is None or abs(place - other) < window)
        ]
        for head in range(query.shape[1]):
            scores = key[seen, head // groups] @ query[row, head] * scale
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            out[row, head] = scores.softmax(0) @ value[seen, head // groups]
    return out


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("queries", [LENGTHS, LAST], ids=["all", "last"])
def test_each_token_attends_to_its_own_passage(queries, causal, window, softcap):
    torch.manual_seed(0)
    filling = 3
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": softcap}
    of_keys = spans(LENGTHS)
    of_queries = of_keys if queries is LENGTHS else spans(queries)
    for key_heads in (4, 2):
        query, key, value = (
            torch.randn(sum(lengths) + filling, heads, 8)
            for lengths, heads in ((queries, 4), (LENGTHS, key_heads), (LENGTHS, key_heads))
        )
        found = padded_attention(query, key, value, of_queries, of_keys, **options)
        assert found.shape == query.shape
        assert found.isfinite().all()
        parts = zip(
            query[:-filling].split(queries), key[:-filling].split(LENGTHS), value[:-filling].split(LENGTHS), strict=True
        )
        expected = torch.cat([by_definition(*part, **options) for part in parts])
        torch.testing.assert_close(found[:-filling], expected, rtol=0, atol=1e-5)
