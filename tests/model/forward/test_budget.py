import json
from types import SimpleNamespace

import pytest
import torch

from pisco_index.model.forward.budget import MAX_TOKENS, BudgetCache, TokenBudget, find_token_budget, gpu_token_budget


class Device:
    """A device with some bytes of memory, of which each batch and each token takes some."""

    def __init__(self, memory, per_token, fixed=0):
        self.memory, self.per_token, self.fixed = memory, per_token, fixed
        self.asked = []

    def peak_of(self, tokens):
        self.asked.append(tokens)
        peak = self.fixed + tokens * self.per_token
        if peak > self.memory:
            raise torch.OutOfMemoryError
        return peak


def test_the_budget_fits_and_leaves_some_memory():
    device = Device(memory=100_000_000, per_token=1000)
    budget = find_token_budget(device.peak_of, device.memory)
    assert 80_000 <= budget <= 90_000
    assert budget % 1024 == 0
    assert device.asked == [4096, budget]


def test_the_budget_has_an_upper_limit():
    assert find_token_budget(Device(10**12, 1000).peak_of, 10**12) == MAX_TOKENS


def test_a_budget_that_does_not_fit_after_all_is_halved():
    # More is free than this process may take.
    device = Device(memory=20_000_000, per_token=1000)
    budget = find_token_budget(device.peak_of, 100_000_000)
    assert budget <= 20_000
    assert device.asked[-1] == budget


def test_a_small_device_has_the_least_budget():
    device = Device(memory=2_000_000, per_token=1000)
    assert find_token_budget(device.peak_of, device.memory) == 1024


def test_a_device_that_is_too_small_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        find_token_budget(Device(memory=1000, per_token=1000).peak_of, 1000)


def test_other_words_for_a_full_device_count_too():
    def peak_of(tokens):
        if tokens > 2048:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        return tokens

    assert find_token_budget(peak_of, 10**9) == 2048
    with pytest.raises(RuntimeError, match="assert"):
        find_token_budget(lambda _: (_ for _ in ()).throw(RuntimeError("device-side assert")), 10**9)


def test_a_cached_budget_is_only_tried():
    device = Device(memory=100_000_000, per_token=1000)
    assert find_token_budget(device.peak_of, device.memory, cached=40_000) == 39_936
    assert device.asked == [39_936]


class TestGpu:
    """The search on a GPU, with this CPU in its place: a token takes 1,000 bytes of the free memory."""

    @pytest.fixture
    def find(self, tmp_path, monkeypatch):
        def find(free):
            tried = []
            card = SimpleNamespace(name="a card", total_memory=80 << 30)
            monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
            monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: tried[-1] * 1000)
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 << 30))
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
            for name in ("reset_peak_memory_stats", "synchronize"):
                monkeypatch.setattr(torch.cuda, name, lambda _: None)
            config = SimpleNamespace(model_type="qwen3", num_hidden_layers=2, hidden_size=64)
            cache = BudgetCache(tmp_path / "budgets.json")
            return gpu_token_budget(torch.device("cuda"), config, torch.bfloat16, tried.append, cache), tried

        return find

    def test_the_budget_that_fits_is_found_and_cached(self, find):
        budget = 41 * 1024
        assert find(50_000_000) == (budget, [1024, 4096, budget])
        # The first batch warms up.
        assert find(50_000_000) == (budget, [1024, budget])

    def test_a_gpu_with_less_free_memory_has_its_own_budget(self, find):
        few, _ = find(50_000_000)
        many, tried = find(90 << 30)
        assert few < many
        assert len(tried) == 3


class TestAfterABatchThatDidNotFit:
    @pytest.fixture
    def budget(self):
        return TokenBudget(1000)

    @staticmethod
    def calls_until_restored(budget):
        calls = 1
        budget.begin_call()
        while budget.current < budget.limit:
            budget.begin_call()
            calls += 1
        return calls

    def test_the_budget_is_half_of_the_batch_for_some_calls(self, budget):
        budget.begin_call()
        budget.halve(600)
        assert budget.current == 300
        budget.begin_call()
        assert budget.current == 300
        budget.begin_call()
        assert budget.current == budget.limit == 1000

    def test_a_budget_that_never_fits_is_tried_less_and_less_often(self, budget):
        waited = []
        for _ in range(5):
            budget.halve(1000)
            waited.append(self.calls_until_restored(budget))
        assert waited == [2, 3, 5, 9, 17]

    def test_it_does_not_matter_how_often_it_was_halved_in_a_call(self, budget):
        for tokens in (1000, 500, 250, 125):
            budget.halve(tokens)
        assert budget.current == 62
        assert self.calls_until_restored(budget) == 2

    def test_a_budget_that_fits_again_is_trusted_again(self, budget):
        for _ in range(3):
            budget.halve(1000)
            self.calls_until_restored(budget)
            # The call that it was restored for fits, and the next one begins.
            budget.begin_call()
        budget.halve(1000)
        assert self.calls_until_restored(budget) == 2

    def test_the_budget_is_at_least_one_token(self, budget):
        budget.halve(1)
        assert budget.current == 1


class TestCache:
    def test_budgets_are_found_by_key(self, tmp_path):
        cache = BudgetCache(tmp_path / "folder" / "budgets.json")
        assert cache.get("a card") is None
        cache.set("a card", 2048)
        cache.set("another", 4096)
        again = BudgetCache(tmp_path / "folder" / "budgets.json")
        assert (again.get("a card"), again.get("another")) == (2048, 4096)
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["budgets.json"]

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"a card": "many"}', '{"a card": -1}', '{"a card": 1e99}'])
    def test_a_damaged_file_is_ignored_and_replaced(self, tmp_path, content):
        path = tmp_path / "budgets.json"
        path.write_text(content)
        cache = BudgetCache(path)
        assert cache.get("a card") is None
        cache.set("a card", 1024)
        assert json.loads(path.read_text())["a card"] == 1024

    def test_a_folder_that_cannot_be_written_is_ignored(self, tmp_path):
        (tmp_path / "file").write_text("")
        cache = BudgetCache(tmp_path / "file" / "budgets.json")
        cache.set("a card", 1024)
        assert cache.get("a card") is None
