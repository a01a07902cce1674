"""Places of workers on a cluster, without Ray."""

import pytest

from pisco_index.pipeline.pools.cluster import NoWorkersError, Seats, require_reachable


def nodes(*resources):
    return [{"Alive": True, "Resources": each} for each in resources]


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [
        # One worker for each node, with all of its cores; several share the cores evenly.
        ("cpu", None, Seats(count=2, gpus=0, cpus=4, room=12, nodes=3)),
        ("cpu", 3, Seats(count=3, gpus=0, cpus=4, room=12, nodes=3)),
        ("cpu", 5, Seats(count=5, gpus=0, cpus=2, room=12, nodes=3)),
        ("cpu", 99, Seats(count=99, gpus=0, cpus=1, room=12, nodes=3)),
    ],
)
def test_workers_share_the_cores(device, workers, expected):
    assert Seats.on(nodes({"CPU": 8.0}, {"CPU": 4.0}, {}), device, workers) == expected


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_workers_have_a_gpu_each_where_there_are_some(device):
    found = Seats.on(
        [*nodes({"CPU": 8.0, "GPU": 2.0}, {"GPU": 1.0}), {"Alive": False, "Resources": {"GPU": 4}}], device, None
    )
    assert found == Seats(count=3, gpus=1, cpus=0, room=3, nodes=2)


def test_no_room_is_an_error():
    with pytest.raises(NoWorkersError, match=r"^The Ray cluster has 0 GPUs on 1 node, and each .* Add nodes"):
        Seats.on(nodes({"CPU": 8.0}), "cuda", None)
    with pytest.raises(NoWorkersError, match="has 0 CPU cores on 2 nodes"):
        Seats.on(nodes({}, {}), "cpu", 3)


def test_an_address_that_nobody_answers_at():
    with pytest.raises(NoWorkersError, match=r"no Ray cluster at 'ray://127\.0\.0\.1:1'"):
        require_reachable("ray://127.0.0.1:1")
    require_reachable("local")
    require_reachable("auto")
