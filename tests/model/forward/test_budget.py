import json

import pytest
import torch

from pisco_index.model.forward.budget import MOST_TOKENS, KnownBudgets, TokenBudget, find_token_budget


class Device:
    """A device of so many bytes, of which a token takes some and a batch a few."""

    def __init__(self, memory, per_token, fixed=0):
        self.memory, self.per_token, self.fixed = memory, per_token, fixed
        self.asked = []

    def peak_of(self, tokens):
        self.asked.append(tokens)
        peak = self.fixed + tokens * self.per_token
        if peak > self.memory:
            raise torch.OutOfMemoryError
        return peak


def test_it_is_what_fits_with_some_left():
    device = Device(memory=100_000_000, per_token=1000)
    budget = find_token_budget(device.peak_of, device.memory)
    assert 80_000 <= budget <= 90_000
    assert budget % 1024 == 0
    assert device.asked == [4096, budget]


def test_no_more_than_a_gpu_has_use_for():
    assert find_token_budget(Device(10**12, 1000).peak_of, 10**12) == MOST_TOKENS


def test_what_does_not_fit_after_all_is_halved():
    # More is free than this process may take.
    device = Device(memory=20_000_000, per_token=1000)
    budget = find_token_budget(device.peak_of, 100_000_000)
    assert budget <= 20_000
    assert device.asked[-1] == budget


def test_a_small_device():
    device = Device(memory=2_000_000, per_token=1000)
    assert find_token_budget(device.peak_of, device.memory) == 1024


def test_a_device_that_is_too_small():
    with pytest.raises(torch.OutOfMemoryError):
        find_token_budget(Device(memory=1000, per_token=1000).peak_of, 1000)


def test_what_is_known_is_only_tried():
    device = Device(memory=100_000_000, per_token=1000)
    assert find_token_budget(device.peak_of, device.memory, known=40_000) == 39_936
    assert device.asked == [39_936]


class TestAfterOneThatDidNotFit:
    @pytest.fixture
    def budget(self):
        return TokenBudget(1000)

    @staticmethod
    def calls_until_restored(budget):
        calls = 1
        budget.begin_call()
        while budget.now < budget.most:
            budget.begin_call()
            calls += 1
        return calls

    def test_it_is_half_of_that_until_some_calls_later(self, budget):
        budget.begin_call()
        budget.halve(600)
        assert budget.now == 300
        budget.begin_call()
        assert budget.now == 300
        budget.begin_call()
        assert budget.now == budget.most == 1000

    def test_one_that_never_fits_is_tried_ever_more_seldom(self, budget):
        waited = []
        for _ in range(5):
            budget.halve(1000)
            waited.append(self.calls_until_restored(budget))
        assert waited == [2, 3, 5, 9, 17]

    def test_it_does_not_matter_how_often_it_was_halved_in_a_call(self, budget):
        for tokens in (1000, 500, 250, 125):
            budget.halve(tokens)
        assert budget.now == 62
        assert self.calls_until_restored(budget) == 2

    def test_one_that_fits_again_is_trusted_again(self, budget):
        for _ in range(3):
            budget.halve(1000)
            self.calls_until_restored(budget)
            # The call that it was restored for fits, and the next one begins.
            budget.begin_call()
        budget.halve(1000)
        assert self.calls_until_restored(budget) == 2

    def test_it_is_never_nothing(self, budget):
        budget.halve(1)
        assert budget.now == 1


class TestKnownBudgets:
    def test_they_are_remembered_by_key(self, tmp_path):
        known = KnownBudgets(tmp_path / "folder" / "budgets.json")
        assert known.get("a card") is None
        known.set("a card", 2048)
        known.set("another", 4096)
        again = KnownBudgets(tmp_path / "folder" / "budgets.json")
        assert (again.get("a card"), again.get("another")) == (2048, 4096)
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["budgets.json"]

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"a card": "many"}', '{"a card": -1}', '{"a card": 1e99}'])
    def test_a_file_that_is_damaged_is_as_good_as_none(self, tmp_path, content):
        path = tmp_path / "budgets.json"
        path.write_text(content)
        known = KnownBudgets(path)
        assert known.get("a card") is None
        known.set("a card", 1024)
        assert json.loads(path.read_text())["a card"] == 1024

    def test_where_nothing_can_be_written_nothing_is_remembered(self, tmp_path):
        (tmp_path / "file").write_text("")
        known = KnownBudgets(tmp_path / "file" / "budgets.json")
        known.set("a card", 1024)
        assert known.get("a card") is None
