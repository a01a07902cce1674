"""Configurations as they are loaded."""

import subprocess
import sys

import pytest

from pisco_index import load_config
from pisco_index.configs import CompressionConfig
from pisco_index.errors import ConfigError


def test_presets_are_listed_after_one_was_loaded():
    # In a fresh process: it is the first use of a preset that must leave the function presets() in its place.
    code = "import pisco_index; pisco_index.load_config('beir'); print('beir' in pisco_index.presets())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_overrides_that_are_none_leave_the_key_as_it_is():
    config = load_config("beir", {"compression": {"max_length": 99, "overlap": None}, "store": {"keep": []}})
    assert (config.compression.max_length, config.compression.overlap, config.store.keep) == (99, 0, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "cannot be read as UTF-8 text"),
        (b"a: [", "not valid YAML"),
        (b"[1]", "expected sections such as corpus: and compression:, found list"),
        (b"run: 5", "run: Input should be"),
        (b"nothing: 5", "unknown key nothing; valid keys are corpus, compression, store, search, run"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


def test_a_fingerprint_gives_its_settings_back():
    settings = CompressionConfig(max_length=39, repeat_title=True, template="{title}: {text}", dtype="float32")
    assert CompressionConfig.of(settings.components | {"rate": "16", "compression": "1"}) == settings
    assert CompressionConfig.of({}) == CompressionConfig()
