"""Metrics as Prometheus gets them, and the dashboard that shows them."""

import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pisco_index import build
from pisco_index.errors import ConfigError, InputError
from pisco_index.pipeline.watch import prometheus as module
from pisco_index.pipeline.watch.progress import WorkerState
from pisco_index.pipeline.watch.prometheus import Metrics

parser = pytest.importorskip("prometheus_client.parser")

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def metrics():
    serving = Metrics(0)
    yield serving
    serving.ended()


def get(port, host="127.0.0.1"):
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
        assert answer.status == 200
        return answer.read().decode()


def samples(port):
    """Every sample, by its name and labels, as the package's own parser reads them."""
    families = parser.text_string_to_metric_families(get(port))
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_a_build_in_numbers(metrics):
    found = samples(metrics.port)
    assert found["pisco_index_documents_total",] == 0
    assert not [name for name, *_ in found if "eta" in name or "commit" in name]

    metrics.started(10, 2, dict.fromkeys(range(2, 10), 1000), "here")
    for part in (0.1, 0.2, 0.3):
        states = [WorkerState("a", "compressing", 5, 10, 100, part), WorkerState("b", "starting", None, 0, 0)]
        metrics.workers(states)
    for number in (2, 3, 4):
        metrics.finished_shard(number, 100, 2500, 9000)
    metrics.committed(2)
    metrics.failed_shard(5, RuntimeError("no luck"), 1, False)
    metrics.failed_shard(5, RuntimeError("no luck"), 3, True)
    metrics.quarantined(6, "doc-1", "too strange")
    metrics.lost_worker("b", "silent")
    metrics.waiting_for_store(OSError(), 1.0)
    found = samples(metrics.port)
    expected = {
        ("pisco_index_documents_total",): 300,
        ("pisco_index_tokens_total",): 7500,
        ("pisco_index_payload_bytes_total",): 27_000,
        ("pisco_index_shard_failures_total",): 2,
        ("pisco_index_quarantined_documents_total",): 1,
        ("pisco_index_lost_workers_total",): 1,
        ("pisco_index_store_retries_total",): 1,
        ("pisco_index_shards", "committed"): 4,
        ("pisco_index_shards", "written"): 1,
        ("pisco_index_shards", "failed"): 1,
        ("pisco_index_shards", "todo"): 4,
        ("pisco_index_workers", "compressing"): 1,
        ("pisco_index_workers", "starting"): 1,
        ("pisco_index_workers", "waiting"): 0,
        ("pisco_index_workers", "reading"): 0,
        ("pisco_index_workers", "writing"): 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["pisco_index_last_commit_timestamp_seconds",] == pytest.approx(metrics.committed_at)
    assert found["pisco_index_eta_seconds",] > 0
    assert found["pisco_index_tokens_per_second",] >= 0


def test_every_metric_says_what_it_is(metrics):
    text = get(metrics.port)
    for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE):
        assert re.search(rf"^# HELP {name} \S.+\.$", text, re.MULTILINE), name


def test_the_numbers_of_a_real_build(checkpoint, make_corpus, small, tmp_path):
    class Asked(Metrics):
        found = None

        def concluded(self, error):
            self.found = samples(self.port)

    metrics = Asked(0)
    build([make_corpus()], checkpoint, tmp_path / "store", small(), progress=metrics)
    assert metrics.found["pisco_index_documents_total",] == 40
    shards = sum(value for (name, *_), value in metrics.found.items() if name == "pisco_index_shards")
    assert shards == 5
    with pytest.raises(urllib.error.URLError):
        get(metrics.port)


def test_only_this_machine_may_ask_by_default(metrics):
    assert metrics._server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_noticed_before_the_build():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127\.0\.0\.1: Address already in use\. Name another"):
            Metrics(port)


def test_a_host_that_is_not_this_one():
    with pytest.raises(ConfigError, match=r"port 0 of 192\.0\.2\.1"):
        Metrics(0, "192.0.2.1")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install prometheus-client"):
        Metrics(0)


def test_the_dashboard_asks_for_metrics_that_there_are(metrics):
    metrics.started(1, 0, {0: 10}, "here")
    metrics.workers([WorkerState("a", "compressing", 0, 0, 0, 0.0)])
    metrics.finished_shard(0, 1, 1, 1)
    metrics.committed(1)
    metrics._remaining_s = 0.0
    exported = {name for name, *_ in samples(metrics.port)}
    text = (EXAMPLES / "grafana-dashboard.json").read_text("utf-8")
    dashboard = json.loads(text)
    asked = set(re.findall(r"pisco_index_\w+", text))
    assert asked == exported
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
    # Two states that a query names.
    states = {state for name, *state in samples(metrics.port) if name == "pisco_index_shards" for state in state}
    for named in re.findall(r'state=~\\"([\w|]+)\\"', text):
        assert set(named.split("|")) <= states
    places = [(x, y) for p in panels for g in [p["gridPos"]] for x in range(g["x"], g["x"] + g["w"])
              for y in range(g["y"], g["y"] + g["h"])]  # fmt: skip
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
