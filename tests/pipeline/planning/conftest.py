"""Small corpora of JSON lines, and their plans."""

import json

from pisco_index.configs import CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.pipeline.planning.planner import plan_corpus
from pisco_index.pipeline.planning.reading import open_sources, read_shard


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def documents(count, start=0, text="some text"):
    return [{"id": f"d{n}", "text": text} for n in range(start, start + count)]


def plan(*paths, shard_documents=4, config=None):
    config = config or CorpusConfig()
    return plan_corpus(open_corpus(paths, config), shard_documents=shard_documents)


def ids_by_shard(a_plan):
    sources = open_sources(a_plan.sources)
    return [[document.doc_id for document in read_shard(shard, sources)] for shard in a_plan.shards]
