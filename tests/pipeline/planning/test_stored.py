"""Settings that a store keeps, and that its later builds use."""

import json

import pytest

from pisco_index import BuildConfig, build
from pisco_index.errors import BuildIncompleteError, ConfigError, PlanMismatchError
from pisco_index.pipeline.planning import stored as stored_module
from pisco_index.pipeline.planning.plan import Plan
from pisco_index.pipeline.planning.stored import current_plan, kept_config
from pisco_index.pipeline.watch.progress import BuildProgress
from pisco_index.store import Store

from ..conftest import fail_on

pytestmark = pytest.mark.usefixtures("plain_compressor")
RUN = {"shard_documents": 8}


class World:
    """A corpus of records with the fields ``key``, ``name`` and ``body`` besides ``id``, ``title`` and ``text``."""

    def __init__(self, checkpoint, folder):
        self.checkpoint, self.store, self.corpus = checkpoint, folder / "store", folder / "corpus.jsonl"
        self.write(30)

    def write(self, count, end=""):
        lines = []
        for n in range(count):
            other = {"key": f"key-{n}", "name": f"Name {n}", "body": f"Body {n}{end}"}
            lines.append(json.dumps({"id": f"doc-{n}", "title": f"Title {n}", "text": f"Text {n}{end}"} | other) + "\n")
        self.corpus.write_text("".join(lines))

    def build(self, *, recompress=False, progress=None, replan=False, **sections):
        config = BuildConfig.parse({"run": RUN, **sections}, "test")
        options = {"recompress": recompress, "progress": progress, "replan": replan}
        return build([self.corpus], self.checkpoint, self.store, config, **options)


@pytest.fixture
def world(checkpoint, tmp_path):
    return World(checkpoint, tmp_path)


SETTINGS = {
    "corpus": {"id_field": "key", "title_field": "name", "text_field": "body", "on_error": "skip"},
    "compression": {"max_length": 64, "template": "{title}: {text}", "dtype": "float32"},
    "store": {"codec": "fp32", "keep": ["title", "text"]},
}


def test_an_update_without_settings_uses_those_of_the_store(world):
    class Listener(BuildProgress):
        def took_settings(self, settings):
            taken.update(settings)

    taken = {}
    world.build(**SETTINGS)
    assert world.build().committed == 0
    world.write(32)
    report = world.build(progress=Listener())
    assert (report.changes.new, report.changes.same) == (2, 30)
    assert (taken["corpus.title_field"], taken["compression.max_length"], taken["store.codec"]) == ("name", 64, "fp32")
    assert "corpus.format" not in taken
    # The update keeps them for the next one.
    world.write(33)
    assert world.build().changes.new == 1


@pytest.mark.parametrize(
    ("kept", "given"),
    [
        ({"title_field": "name"}, {"title_field": "title"}),
        ({}, {"title_field": "name"}),
        ({"text_field": "body"}, {"text_field": None}),
        ({"id_field": "key"}, {"id_field": "id"}),
        ({}, {"passage_words": 10}),
    ],
)
def test_an_update_with_other_settings_is_refused_with_both(world, kept, given):
    world.build(corpus=kept)
    world.write(31)
    ((key, value),) = given.items()
    with pytest.raises(ConfigError, match=f"{key} {kept.get(key)!r}, not {value!r}.*--recompress"):
        world.build(corpus=given)


def test_other_settings_are_confirmed_once(world):
    world.build(corpus={"title_field": "name"})
    world.write(31)
    assert world.build(corpus={"title_field": "title"}, recompress=True).changes.changed == 30
    assert kept_config(Store.open(world.store)).corpus.title_field == "title"
    world.write(32)
    assert world.build().changes.same == 31


def test_naming_what_would_be_recognised_is_no_difference(world):
    world.build()
    world.write(31)
    named = {"format": "jsonl", "title_field": "title", "id_field": "id", "on_error": "skip"}
    assert world.build(corpus=named).changes.same == 30


def test_an_unfinished_build_resumes_without_its_settings_and_not_with_others(world, monkeypatch):
    with monkeypatch.context() as patched:
        fail_on(patched, {2})
        with pytest.raises(BuildIncompleteError, match="1 of 4 shards failed"):
            world.build(**SETTINGS)
    with pytest.raises(PlanMismatchError, match="title"):
        world.build(corpus={"title_field": "title"})
    with pytest.raises(ConfigError, match="title_field 'name', not 'title'"):
        world.build(corpus={"title_field": "title"}, replan=True)
    assert (world.build().done_before, world.build().committed) == (3, 0)


def test_stores_that_keep_no_settings(world, monkeypatch):
    with monkeypatch.context() as patched:
        # An update by an early version, whose plan has no settings: those of the first build count.
        world.build(corpus={"title_field": "name"})
        world.write(31)
        patched.setattr("pisco_index.pipeline.turns.replace", lambda plan, settings: plan)
        world.build()
    assert current_plan(Store.open(world.store)).settings is None
    world.write(32)
    assert world.build().changes.same == 31
    # A store without a configuration: what is not given is recognised.
    monkeypatch.setattr(stored_module, "CONFIG_ASSET", "absent.json")
    world.write(33)
    assert world.build(corpus={"title_field": "name"}).changes.same == 32


def test_a_plan_keeps_settings():
    plan = Plan((), (), (), {}, settings={"title_field": "name"})
    assert Plan.from_json(plan.to_json()) == plan
