"""What is drawn for batches that are made ahead of their step is drawn again after resuming."""

import pytest
import torch
from torch.utils.data import DataLoader

from pisco_index.training.ahead import Ahead


def draw(records):
    return torch.rand(3)


def test_batches_that_no_step_has_used_are_made_again():
    torch.manual_seed(0)
    ahead = Ahead(draw)
    batches = [ahead(None) for _ in range(4)]
    ahead.used()
    ahead.used()
    assert len(ahead.states) == 2
    here = torch.get_rng_state()
    following = ahead(None)

    torch.manual_seed(9)
    resumed = Ahead(draw)
    resumed.repeat(ahead.states[:2], lambda: torch.set_rng_state(here))
    again = [resumed(None) for _ in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(again, [*batches[2:], following], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(resumed.states, ahead.states, strict=True))


def test_where_nothing_was_made_ahead_the_generators_are_left_to_others():
    torch.manual_seed(0)
    resumed = Ahead(draw)
    resumed.repeat([], lambda: torch.manual_seed(9))
    expected = torch.Generator().manual_seed(0)
    assert torch.equal(resumed(None), torch.rand(3, generator=expected))


# Other tests have loaded lance, which warns of forks.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_in_a_worker_process_nothing_is_remembered():
    ahead = Ahead(draw)
    assert len(list(DataLoader(range(4), batch_size=2, num_workers=1, collate_fn=ahead))) == 2
    assert not ahead.states
