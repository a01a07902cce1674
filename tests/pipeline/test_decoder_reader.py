"""The decoder that reads a sample: when it is loaded, how much it reads, and that it is dropped."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from pisco_index import open_checkpoint
from pisco_index.configs.build import StoreConfig
from pisco_index.errors import CheckpointError, ConfigError
from pisco_index.pipeline import decoder_reader
from pisco_index.pipeline.decoder_reader import DecoderReader, why_unread
from pisco_index.store import MemorySample, codec_by_name, fit


@pytest.fixture
def opened(checkpoint):
    return open_checkpoint(checkpoint)


def sample_of(opened, documents=12):
    dim = opened.memory_dim(opened.default_stage)
    values = np.random.default_rng(0).standard_normal((2 * documents, dim)).astype(np.float32)
    return MemorySample(values, [2] * documents, [f"Text {n} is about a river." for n in range(documents)])


def test_a_light_decoder_is_read(opened, monkeypatch):
    assert why_unread(opened, StoreConfig()) == ""
    assert why_unread(opened, StoreConfig(measure_kl=False)) == "turned off by --no-measure-kl"
    monkeypatch.setattr(decoder_reader, "LIGHT_BYTES", 1)
    assert "weights take 0.0 GB (--measure-kl loads them)" in why_unread(opened, StoreConfig())
    for chosen in (StoreConfig(measure_kl=True), StoreConfig(codec="fisher2")):
        assert why_unread(opened, chosen) == ""


def test_a_base_that_is_missing_is_an_error_only_if_it_was_asked_for(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    shutil.rmtree(folder / "base_decoder")
    opened = open_checkpoint(folder)
    for codec in ("int8", "fisher2"):
        missing = "the base decoder base_decoder is not found (--decoder-base)"
        assert why_unread(opened, StoreConfig(codec=codec)) == missing
    with pytest.raises(CheckpointError, match="base_decoder"):
        why_unread(opened, StoreConfig(measure_kl=True))


def test_it_reads_a_part_with_few_steps_and_lets_go(opened, monkeypatch):
    steps, sample = [], sample_of(opened)
    reader = DecoderReader(str(opened.path), opened.default_stage, "cpu", on_step=lambda: steps.append(1))
    matrix = reader.sensitivity(sample)
    assert matrix.shape == (sample.values.shape[1],) * 2
    assert len(steps) > 1
    exact = reader.divergence(sample, sample.values)
    assert (exact.kl, exact.documents) == (0, 12)
    assert reader._loaded is None
    # The two documents that a slow decoder reads are the first and the last.
    monkeypatch.setattr(decoder_reader, "_CPU_BYTES", 1)
    monkeypatch.setattr(decoder_reader, "_LEAST_DOCUMENTS", 2)
    decoded = sample.values.copy()
    decoded[2:-2] += 1
    few = reader.divergence(sample, decoded)
    assert (few.kl, few.documents) == (0, 2)


def test_a_decoder_without_room_is_explained(opened, monkeypatch):
    sample = sample_of(opened)
    reader = DecoderReader(str(opened.path), opened.default_stage, "cpu")
    assert decoder_reader._free_memory() > 1 << 20
    monkeypatch.setattr(decoder_reader, "_free_memory", lambda: 1)
    # A codec that is fitted to the decoder needs it.
    with pytest.raises(ConfigError, match=r"no room: it takes about .* GB are free\. Choose .* --no-measure-kl"):
        fit(codec_by_name("fisher2"), sample, reader)
    _, prediction = fit(codec_by_name("int8"), sample, reader)
    assert prediction.kl is None
    assert prediction.kl_missing.startswith("MemoryError: it takes about 0.0 GB in float32")


def test_a_decoder_that_can_read_nothing_is_dropped(opened):
    reader = DecoderReader(str(opened.path), opened.default_stage, "cpu")
    sample = sample_of(opened)
    _, prediction = fit(codec_by_name("fisher2"), replace(sample, texts=[""] * 12), reader)
    assert "can read none of 12 documents" in prediction.kl_missing
    assert reader._loaded is None


def test_a_decoder_that_measures_no_divergence_is_dropped(opened):
    """On a cluster another worker may measure it."""
    reader = DecoderReader(str(opened.path), opened.default_stage, "cpu")
    reader.sensitivity(sample_of(opened))
    assert reader._loaded is not None
    reader.drop()
    assert reader._loaded is None
