import pytest
import torch

from pisco_index.errors import ConfigError
from pisco_index.model.forward import kernels
from pisco_index.model.forward.attention import padded_attention
from pisco_index.model.forward.kernels import choose_attention

SHAPE = {"heads": 4, "key_heads": 2, "head_dim": 8}


@pytest.mark.parametrize("name", ["auto", "padded"])
def test_a_cpu_pads(name):
    assert choose_attention(torch.device("cpu"), torch.bfloat16, **SHAPE, name=name) is padded_attention


def test_a_cpu_has_no_other_kernel():
    with pytest.raises(ConfigError, match=r"The attention kernel torch cannot be used: it needs a GPU .* not cpu and"):
        choose_attention(torch.device("cpu"), torch.bfloat16, **SHAPE, name="torch")


class TestChoiceOnAGpu:
    """The choice on a GPU, with this CPU in its place: wrong or missing kernels are not used."""

    @pytest.fixture
    def choose(self, monkeypatch):
        class Device(str):
            type = "cuda"

        def choose(given, seconds, **options):
            for name, kernel in given.items():
                monkeypatch.setattr(kernels, name, kernel)
            monkeypatch.setattr(kernels._Sample, "repeats", 1)
            monkeypatch.setattr(kernels._Sample, "seconds", lambda self, kernel: seconds[kernel])
            return choose_attention(Device("cpu"), torch.bfloat16, heads=4, key_heads=2, head_dim=8, **options)

        return choose

    def test_the_fastest_kernel_is_chosen(self, choose):
        def one(*arguments, **options):
            return padded_attention(*arguments, **options)

        def other(*arguments, **options):
            return padded_attention(*arguments, **options)

        assert choose({"torch_attention": one, "flash_attention": other}, {one: 2.0, other: 1.0}) is other

    def test_another_kernel_must_be_clearly_faster(self, choose, caplog):
        def one(*arguments, **options):
            return padded_attention(*arguments, **options)

        def other(*arguments, **options):
            return padded_attention(*arguments, **options)

        caplog.set_level("INFO")
        given = {"torch_attention": one, "flash_attention": other}
        assert choose(given, {one: 1.0, other: 0.95}) is one
        assert "cpu uses one (of one 1000.00 ms, other 950.00 ms a call)" in caplog.text
        assert choose(given, {one: 1.0, other: 0.85}) is other

    def test_a_full_device_is_an_error(self, choose):
        def too_large(*arguments, **options):
            raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(torch.OutOfMemoryError):
            choose({"torch_attention": too_large, "flash_attention": too_large}, {})

    def test_a_wrong_kernel_is_not(self, choose, caplog):
        def right(*arguments, **options):
            return padded_attention(*arguments, **options)

        def forgets_the_window(*arguments, window, **options):
            return padded_attention(*arguments, **options)

        given = {"torch_attention": forgets_the_window, "flash_attention": right}
        assert choose(given, {forgets_the_window: 1.0, right: 2.0}) is right
        assert "The attention of torch computes wrong values" in caplog.text

    def test_a_kernel_that_returns_nan_is_not(self, choose):
        def right(*arguments, **options):
            return padded_attention(*arguments, **options)

        def no_numbers_in_windows(*arguments, window, **options):
            found = padded_attention(*arguments, window=window, **options)
            return found if window is None else found * torch.nan

        given = {"torch_attention": no_numbers_in_windows, "flash_attention": right}
        assert choose(given, {no_numbers_in_windows: 1.0, right: 2.0}) is right

    def test_a_named_kernel_is_used_unless_it_cannot_be(self, choose):
        def right(*arguments, **options):
            return padded_attention(*arguments, **options)

        def wrong(*arguments, **options):
            return padded_attention(*arguments, **options) + 1

        def missing(*arguments, **options):
            raise ImportError("no such package")

        given = {"torch_attention": wrong, "flash_attention": right}
        assert choose(given, {right: 2.0}, name="flash-attn") is right
        assert choose(given, {}, name="padded") is padded_attention
        with pytest.raises(ConfigError, match="kernel torch cannot be used: it computes wrong values"):
            choose(given, {}, name="torch")
        with pytest.raises(ConfigError, match=r"kernel flash-attn cannot be used: no such package\."):
            choose({"torch_attention": right, "flash_attention": missing}, {right: 1.0}, name="flash-attn")

    def test_without_a_kernel_attention_is_padded(self, choose):
        def missing(*arguments, **options):
            raise ImportError("no such package")

        def unfit(*arguments, **options):
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

        assert choose({"torch_attention": unfit, "flash_attention": missing}, {}) is padded_attention


@pytest.mark.parametrize(
    ("causal", "window", "expected"), [(True, None, (-1, 0)), (True, 4, (3, 0)), (False, None, (-1, -1))]
)
def test_kernels_count_a_window_without_the_token_itself(causal, window, expected):
    assert kernels._window(causal, window) == expected
