"""Places of workers on a cluster, without Ray."""

import socket
from threading import Thread

import pytest

from pisco_index.pipeline.pools.cluster import NoWorkersError, Seats, describe_nodes, joining, require_reachable


def nodes(*resources):
    return [{"Alive": True, "Resources": each} for each in resources]


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [
        # One worker for each node, with all of its cores; several share the cores evenly.
        ("cpu", None, Seats(count=2, gpus=0, cpus=4, threads=4, room=12, nodes=3)),
        ("cpu", 3, Seats(count=3, gpus=0, cpus=4, threads=4, room=12, nodes=3)),
        ("cpu", 5, Seats(count=5, gpus=0, cpus=2, threads=2, room=12, nodes=3)),
        ("cpu", 99, Seats(count=99, gpus=0, cpus=1, threads=1, room=12, nodes=3)),
    ],
)
def test_workers_share_the_cores(device, workers, expected):
    assert Seats.on(nodes({"CPU": 8.0}, {"CPU": 4.0}, {}), device, workers) == expected


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_workers_have_a_gpu_each_where_there_are_some(device):
    found = Seats.on(
        [*nodes({"CPU": 8.0, "GPU": 2.0}, {"CPU": 9.0, "GPU": 1.0}), {"Alive": False, "Resources": {"GPU": 4}}],
        device,
        None,
    )
    assert found == Seats(count=3, gpus=1, cpus=0, threads=4, room=3, nodes=2)


def test_a_worker_with_a_gpu_has_a_thread_even_if_cores_are_few():
    assert Seats.on(nodes({"CPU": 4.0, "GPU": 8.0}), "cuda", None).threads == 1


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


def test_another_program_at_the_address_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(NoWorkersError, match="another program answers there"):
            require_reachable(f"127.0.0.1:{port}")
        thread.join()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("local", r"^Ray does not start on this machine: the node timed out\. Its logs are in /tmp/ray"),
        ("auto", r"^no Ray cluster at 'auto': the node timed out\. Start one"),
    ],
)
def test_what_ray_says_becomes_one_error_with_advice(address, expected):
    with pytest.raises(NoWorkersError, match=expected), joining(address):
        raise Exception("A long story.\n\nthe node timed out.\n")


def test_a_cluster_is_described_by_what_it_has():
    found = nodes({"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0})
    assert describe_nodes(found) == "2 nodes, 1 GPU, 12 CPU cores"
    assert describe_nodes([*nodes({"CPU": 1.0}), {"Alive": False, "Resources": {"GPU": 4}}]) == "1 node, 1 CPU core"
