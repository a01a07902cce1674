"""The spellings of places: one treatment for all arguments."""

import errno
import os
from pathlib import Path

import pytest

from pisco_index.configs import load_config
from pisco_index.corpus.ids import read_ids
from pisco_index.errors import ConfigError, CorpusError, InputError, StoreError
from pisco_index.places import input_path, input_paths, is_local_file, local_path
from pisco_index.store.table.addresses import resolve_uri


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("data/a.jsonl", "data/a.jsonl"),
        ("~", "{home}"),
        ("~/a b", "{home}/a b"),
        ("file:///data/a", "/data/a"),
        ("FILE://localhost/data/a", "/data/a"),
        ("file:/data/a", "/data/a"),
        ("file:///data/a%20b%23%FF", "/data/a b#\udcff"),
        ("file:///data/a#b?c", "/data/a#b?c"),
        ("file:data", "file:data"),
        ("C:/data", "C:/data"),
        ("2024:/data", "2024:/data"),
    ],
)
def test_spellings_of_a_path(spelling, path, home):
    for kind in (str, Path):
        assert local_path(kind(spelling)) == Path(path.format(home=home))
    assert resolve_uri(spelling) == str(Path(path.format(home=home)).absolute())


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("", "is empty"),
        ("a\0b", "zero byte"),
        ("s3://bucket/a", "local or mounted paths, not s3: addresses"),
        ("s3:/bucket/a", "local or mounted paths"),
        ("https://example.org/a", "local or mounted paths, not https: addresses"),
        ("file://server/a", "three slashes"),
        ("file://", "three slashes"),
        ("~nobody-of-this-name/a", "the home folder ~nobody-of-this-name is unknown"),
    ],
)
def test_places_that_are_no_local_path(spelling, message, home):
    with pytest.raises(CorpusError, match=message):
        local_path(spelling, CorpusError)


def test_a_home_folder_that_is_unknown_is_not_a_folder_of_that_name(home, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    with pytest.raises(StoreError, match="the home folder ~ is unknown"):
        resolve_uri("~/store")


def test_a_file_whose_name_begins_like_a_home_folder(home):
    Path("~draft.jsonl").write_text("x")
    assert local_path("~draft.jsonl") == Path("~draft.jsonl")


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def found(pattern, folder):
    return [path.relative_to(folder).as_posix() for path in input_paths(pattern)[1]]


def test_patterns(tmp_path, monkeypatch):
    write(tmp_path, "data/a1.jsonl", "data/a2.jsonl", "data/b.tsv", "data/x/y/a3.jsonl", "data/.hidden.jsonl")
    data = tmp_path / "data"
    assert found(data / "*.jsonl", data) == ["a1.jsonl", "a2.jsonl"]
    assert found(data / "a?.jsonl", data) == ["a1.jsonl", "a2.jsonl"]
    assert found(data / "[!b]*", data) == ["a1.jsonl", "a2.jsonl", "x"]
    assert found(data / "**/*.jsonl", data) == ["a1.jsonl", "a2.jsonl", "x/y/a3.jsonl"]
    assert found(data / "*/y/*", data) == ["x/y/a3.jsonl"]
    assert found(data / ".*", data) == [".hidden.jsonl"]
    assert found(f"file://{data}/*.tsv", data) == ["b.tsv"]
    monkeypatch.chdir(data)
    assert input_paths("*.tsv") == (Path(), (Path("b.tsv"),))
    monkeypatch.setenv("HOME", str(data))
    assert found("~/b*", data) == ["b.tsv"]
    for pattern in ("*.csv", "no/*.tsv"):
        with pytest.raises(InputError, match="no file or folder matches this pattern"):
            input_paths(pattern)


def test_a_name_with_the_characters_of_a_pattern_is_found_first(tmp_path):
    write(tmp_path, "a[1].jsonl", "a1.jsonl", "b*", "bc", "v[2]/a.jsonl")
    assert found(tmp_path / "a[1].jsonl", tmp_path) == ["a[1].jsonl"]
    assert found(tmp_path / "b*", tmp_path) == ["b*"]
    assert found(tmp_path / "v[2]/*.jsonl", tmp_path) == ["v[2]/a.jsonl"]


def test_a_link_that_leads_upwards_does_not_lead_a_pattern_in_a_circle(tmp_path):
    write(tmp_path, "a/b/x.jsonl")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    assert found(tmp_path / "**/*.jsonl", tmp_path) == ["a/b/x.jsonl"]


def test_a_folder_that_cannot_be_listed_is_not_skipped_by_a_pattern(tmp_path, monkeypatch):
    write(tmp_path, "data/shut/a.jsonl")
    names = os.listdir

    def listdir(folder):
        if Path(folder).name == "shut":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return names(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InputError, match=r"shut: the folder cannot be listed \(Permission denied\)"):
        input_paths(tmp_path / "data/**/*.jsonl")


def test_a_pattern_for_one_file_matches_one(tmp_path, monkeypatch):
    write(tmp_path, "settings.yaml", "ids-1", "ids-2")
    (tmp_path / "settings.yaml").write_text("corpus: {format: tsv}")
    monkeypatch.chdir(tmp_path)
    assert load_config("file://" + str(tmp_path / "settings.yaml")).corpus.format == "tsv"
    assert load_config("*.yaml").corpus.format == "tsv"
    assert read_ids("ids-[1]") == ["x"]
    with pytest.raises(InputError, match=r"2 files match this pattern, and one is read: 'ids-1', 'ids-2'"):
        read_ids("ids-*")
    with pytest.raises(ConfigError, match="s3: addresses"):
        load_config("s3://bucket/settings.yaml")
    assert input_path("none") == Path("none")
    assert is_local_file("ids-[1]")
    assert not is_local_file("s3://bucket/ids")
    assert not is_local_file(tmp_path)
