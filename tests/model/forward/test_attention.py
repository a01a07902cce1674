import pytest
import torch

from pisco_index.model.forward import attention
from pisco_index.model.forward.attention import Spans, choose_attention, padded_attention

LENGTHS = [5, 1, 0, 17, 8]
LAST = [2, 1, 0, 17, 3]


def spans(lengths):
    starts = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)
    return Spans.of(starts, max(lengths))


def by_definition(query, key, value, *, scale, causal, window, softcap=None):
    """One passage, one head, one query after the other; the queries are the last tokens."""
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
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("queries", [LENGTHS, LAST], ids=["all", "last"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_each_token_sees_what_it_may(queries, key_heads, causal, window, softcap):
    torch.manual_seed(0)
    filling = 3
    query, key, value = (
        torch.randn(sum(lengths) + filling, heads, 8)
        for lengths, heads in ((queries, 4), (LENGTHS, key_heads), (LENGTHS, key_heads))
    )
    options = {"scale": 0.3, "causal": causal, "window": window, "softcap": softcap}
    of_queries, of_keys = spans(queries), spans(LENGTHS)
    if queries is LENGTHS:
        of_queries = of_keys
    found = padded_attention(query, key, value, of_queries, of_keys, **options)
    assert found.shape == query.shape
    assert found.isfinite().all()
    parts = zip(
        query[:-filling].split(queries), key[:-filling].split(LENGTHS), value[:-filling].split(LENGTHS), strict=True
    )
    expected = torch.cat([by_definition(*part, **options) for part in parts])
    torch.testing.assert_close(found[:-filling], expected, rtol=0, atol=1e-5)


def test_a_cpu_pads():
    assert choose_attention(torch.device("cpu"), torch.bfloat16, heads=4, key_heads=2, head_dim=8) is padded_attention


class TestChoiceOnAGpu:
    """The choice that is made on a GPU, with this CPU in its place: kernels that are wrong or missing are left out."""

    @pytest.fixture
    def choose(self, monkeypatch):
        class Device(str):
            type = "cuda"

        def choose(kernels, seconds):
            for name, kernel in kernels.items():
                monkeypatch.setattr(attention, name, kernel)
            monkeypatch.setattr(attention._Sample, "seconds", lambda self, kernel: seconds[kernel])
            return choose_attention(Device("cpu"), torch.bfloat16, heads=4, key_heads=2, head_dim=8)

        return choose

    def test_the_fastest_is_chosen(self, choose):
        def one(*arguments, **options):
            return padded_attention(*arguments, **options)

        def other(*arguments, **options):
            return padded_attention(*arguments, **options)

        assert choose({"torch_attention": one, "flash_attention": other}, {one: 2.0, other: 1.0}) is other

    def test_one_that_is_wrong_is_not(self, choose, caplog):
        def right(*arguments, **options):
            return padded_attention(*arguments, **options)

        def forgets_the_window(*arguments, window, **options):
            return padded_attention(*arguments, **options)

        kernels = {"torch_attention": forgets_the_window, "flash_attention": right}
        assert choose(kernels, {forgets_the_window: 1.0, right: 2.0}) is right
        assert "torch's attention gives other values than expected" in caplog.text

    def test_one_that_gives_no_numbers_is_not(self, choose):
        def right(*arguments, **options):
            return padded_attention(*arguments, **options)

        def no_numbers_in_windows(*arguments, window, **options):
            found = padded_attention(*arguments, window=window, **options)
            return found if window is None else found * torch.nan

        kernels = {"torch_attention": no_numbers_in_windows, "flash_attention": right}
        assert choose(kernels, {no_numbers_in_windows: 1.0, right: 2.0}) is right

    def test_without_any_it_is_padded(self, choose):
        def missing(*arguments, **options):
            raise ImportError("no such package")

        def unfit(*arguments, **options):
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

        assert choose({"torch_attention": unfit, "flash_attention": missing}, {}) is padded_attention


@pytest.mark.parametrize(
    ("causal", "window", "expected"), [(True, None, (-1, 0)), (True, 4, (3, 0)), (False, None, (-1, -1))]
)
def test_kernels_count_a_window_without_the_token_itself(causal, window, expected):
    assert attention._window(causal, window) == expected
