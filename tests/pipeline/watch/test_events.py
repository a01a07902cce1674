"""The log of events: what is documented is what is written."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pisco_index import BuildConfig, build
from pisco_index.errors import BuildIncompleteError, BuildInterruptedError, ConfigError, CorpusError
from pisco_index.pipeline.watch import events as module
from pisco_index.pipeline.watch.events import EventLog
from pisco_index.pipeline.watch.progress import MOMENTS, Listeners, WorkerState
from pisco_index.store import Prediction

from ..conftest import fail_on

DOCS = Path(__file__).parents[3] / "docs"
SCHEMA = json.loads(Path(module.__file__).with_name("events.schema.json").read_text("utf-8"))
EVENTS = {branch["properties"]["event"]["const"]: branch for branch in SCHEMA["oneOf"]}
TYPES = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "object": dict, "null": type(None)}


def check(value, schema, place="event"):
    """Hold a value against those words of JSON Schema that the schema uses; others are an error."""
    known = {"type", "minimum", "pattern", "format", "enum", "const", "description", "additionalProperties"}
    if schema is True:
        return
    assert schema.keys() <= known, schema
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        is_number = not isinstance(value, bool) or "boolean" in kinds
        assert isinstance(value, tuple(TYPES[kind] for kind in kinds if kind != "number") or ()) or (
            "number" in kinds and isinstance(value, (int, float))
        ), f"{place}: {value!r} is not {kinds}"
        assert is_number, f"{place}: {value!r}"
    if "minimum" in schema and value is not None:
        assert value >= schema["minimum"], f"{place}: {value}"
    if "pattern" in schema:
        assert re.search(schema["pattern"], value), f"{place}: {value}"
    if schema.get("format") == "date-time":
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value), f"{place}: {value}"
    if "enum" in schema:
        assert value in schema["enum"], f"{place}: {value}"
    if "const" in schema:
        assert value == schema["const"], f"{place}: {value}"
    for name, each in value.items() if "additionalProperties" in schema else ():
        check(each, schema["additionalProperties"], f"{place}.{name}")


def read(path):
    """The events of a file, each held against the schema."""
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for event in events:
        assert event["event"] in EVENTS, event
        branch = EVENTS[event["event"]]
        assert set(SCHEMA["required"]) | set(branch["required"]) == set(event) == set(branch["properties"]), event
        for name, value in event.items():
            check(value, SCHEMA["properties"].get(name, True), name)
            check(value, branch["properties"][name], f"{event['event']}.{name}")
    return events


def tell_all(log, turn=lambda seconds: None):
    """Tell a log of every moment there is."""
    log.began("/index", BuildConfig())
    log.planning(1)
    log.planned_records(1000)
    log.recognised(["c.tsv: tab-separated"])
    log.loading("cuda", True)
    log.calibrating("int4")
    log.calibrated(Prediction("int4", 100, 4.1, -20.3, True, None, 0.0))
    log.started(3, 1, {1: 100, 2: 100}, "here")
    for second in range(62):
        turn(second)
        log.workers([WorkerState("w0", "starting" if second < 9 else "compressing", 1, second, 10 * second, 0.01)])
    log.finished_shard(1, 10, 25, 400)
    log.failed_shard(2, RuntimeError("no\nluck"), 1, False)
    log.alone(2)
    log.quarantined(2, "döc\ud800", "too strange")
    log.lost_worker("w0", "silent")
    log.waiting_for_store(OSError("no answer"), 1.5)
    log.committed(1)
    log.lost_listener("Metrics", OSError("gone"))
    log.indexing("made", 0, 30)
    log.indexing("made", 10, 30)
    log.stopping()
    log.concluded(BuildInterruptedError("Stopped."))
    log.ended()


def test_every_moment_is_an_event_of_the_schema(tmp_path):
    now = 0.0

    def turn(seconds):
        nonlocal now
        now = seconds

    tell_all(EventLog(tmp_path / "events", clock=lambda: now), turn)
    events = read(tmp_path / "events")
    assert {event["event"] for event in events} == EVENTS.keys()
    assert len({event["run"] for event in events}) == 1
    assert [event["elapsed_s"] for event in events if event["event"] in ("worker_ready", "progress")] == [9, 60]
    # Those of the moments that are no events on their own.
    silent = {"joined", "planned_records", "recognised", "keeping_text", "took_settings", "left_out"}
    silent |= {"workers", "concluded", "ended"}
    assert set(MOMENTS) - silent == EVENTS.keys() - {"worker_ready", "progress", "ended"}
    (end,) = [event for event in events if event["event"] == "ended"]
    assert (end["how"], end["done"], end["failed_tries"], end["quarantined"]) == ("interrupted", 2, 1, 1)


def test_the_documentation_lists_every_event_of_the_schema():
    text = (DOCS / "watching.md").read_text("utf-8")
    assert not [name for name in EVENTS if f"`{name}`" not in text]


def test_a_build_and_the_one_that_goes_on_are_in_one_file(checkpoint, make_corpus, small, tmp_path, monkeypatch):
    corpus, store, path = make_corpus(), tmp_path / "store", tmp_path / "events"
    with monkeypatch.context() as patched:
        fail_on(patched, {2})
        with pytest.raises(BuildIncompleteError):
            build([corpus], checkpoint, store, small(), progress=EventLog(path))
    build([corpus], checkpoint, store, small(), progress=EventLog(path))
    events = read(path)
    first, second = dict.fromkeys(event["run"] for event in events)
    runs = {run: [event for event in events if event["run"] == run] for run in (first, second)}
    kinds = [event["event"] for event in runs[first]]
    assert kinds[:4] == ["began", "planning", "loading", "started"]
    assert kinds[-1] == "ended"
    assert kinds.count("failed_shard") == 3
    began, end = runs[first][0], runs[first][-1]
    assert began["uri"] == str(store)
    assert (end["how"], end["shards"] - end["done"]) == ("incomplete", 1)
    assert end["error"].startswith("BuildIncompleteError: 1 of ")
    written = [event for event in runs[first] if event["event"] == "finished_shard"]
    assert sum(event["documents"] for event in written) == end["documents"] == 40 - 8
    started, again = (next(e for e in runs[second] if e["event"] == kind) for kind in ("started", "ended"))
    assert started["shards"] - started["done"] == 1
    assert (again["how"], again["error"], again["documents"]) == ("done", None, 8)
    assert runs[second][0]["config"] == began["config"]
    seconds = [event["elapsed_s"] for event in runs[first]]
    assert seconds == sorted(seconds)
    age = datetime.now(UTC) - datetime.fromisoformat(began["time"])
    assert timedelta(0) <= age < timedelta(hours=1)


def test_a_build_that_is_refused_says_why(checkpoint, tmp_path):
    with pytest.raises(CorpusError):
        build([tmp_path / "none"], checkpoint, tmp_path / "store", progress=EventLog(tmp_path / "events"))
    _, end = read(tmp_path / "events")
    assert (end["how"], end["error"].split(":")[0]) == ("failed", "CorpusError")


def test_credentials_are_not_written_down(checkpoint, make_corpus, tmp_path):
    with pytest.raises(Exception, match="credentials"):
        build([make_corpus()], checkpoint, "s3://me:secret@b/x", progress=EventLog(tmp_path / "events"))
    assert "secret" not in (tmp_path / "events").read_text()
    assert [event["event"] for event in read(tmp_path / "events")] == ["ended"]


def test_a_line_that_a_killed_run_left_is_a_line_of_its_own(tmp_path):
    path = tmp_path / "events"
    path.write_text('{"time": "2026-')
    log = EventLog(path)
    log.stopping()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"time": "2026-'
    assert json.loads(whole)["event"] == "stopping"


def test_each_event_is_there_at_once(tmp_path):
    log = EventLog(tmp_path / "events")
    assert (tmp_path / "events").read_text() == ""
    for count in range(1, 4):
        log.committed(count)
        assert len(read(tmp_path / "events")) == count


def test_a_file_that_cannot_be_written_is_noticed_before_the_build(tmp_path):
    with pytest.raises(ConfigError, match=r"none/events: No such file or directory\. Name another"):
        EventLog(tmp_path / "none" / "events")


@pytest.mark.fault(
    "The event log's disk is full, or another listener fails.",
    "It is reported once; the build continues.",
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_ends_the_log_and_not_the_build(checkpoint, make_corpus, small, tmp_path):
    class Recorder(module.Tally):
        lost = ()

        def lost_listener(self, name, error):
            self.lost += ((name, error.strerror),)

    recorder, log = Recorder(), EventLog(tmp_path / "events")
    log._path = Path("/dev/full")
    build([make_corpus()], checkpoint, tmp_path / "store", small(), progress=Listeners(log, recorder))
    assert recorder.lost == (("EventLog", "No space left on device"),)
    assert recorder.done == recorder.shards == 5
