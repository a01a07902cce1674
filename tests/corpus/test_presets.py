"""Each preset is valid and reads a sample of its corpus."""

from importlib import resources

import pytest
import yaml

from pisco_index.configs.corpus import CorpusConfig

NAMES = ("beir", "dpr", "fineweb", "kilt", "msmarco", "pyserini", "wikipedia", "wikipedia-parquet")

SAMPLES = {
    "beir": '{"_id": "1", "title": "T", "text": "x", "metadata": {}}',
    "dpr": 'id\ttext\ttitle\n1\t"x"\tT\n',
    "kilt": '{"_id": "1", "wikipedia_id": "1", "wikipedia_title": "T", "text": ["x"], "history": {}}',
    "msmarco": '1\t"x\n',
    "pyserini": '[{"id": "1", "contents": "x"}]',
}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_valid_and_says_what_it_is_for(name):
    text = (resources.files("pisco_index.configs.presets") / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    CorpusConfig.parse(yaml.safe_load(text)["corpus"], name)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_preset_reads_its_corpus(write, documents, name):
    text = (resources.files("pisco_index.configs.presets") / f"{name}.yaml").read_text()
    (document,) = documents(write("corpus", SAMPLES[name]), **yaml.safe_load(text)["corpus"])
    assert document.doc_id.startswith("1")
    assert document.text.lstrip('"') == "x"
    assert document.title == (None if name in ("msmarco", "pyserini") else "T")
