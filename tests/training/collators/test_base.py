"""The rules that the samples of every task must keep."""

import json

import pytest

from pisco_index.configs import CompressionConfig
from pisco_index.errors import TrainingError
from pisco_index.training.collators import Collator, QuestionAnswering, Sample
from pisco_index.training.data import read_conversations

PLAIN = CompressionConfig(max_length=32)


class Given(Collator):
    """Returns the sample that a record holds."""

    def sample(self, record):
        return Sample(*record["sample"])


def test_a_sample_that_breaks_a_rule_is_refused(tiny, memory_counts):
    collator = Given(tiny, PLAIN)
    memory, decoder_memory = collator.passage_tokenizer.memory_token_ids[0], collator.decoder_memory_id
    good = [[5, memory], [6, memory, memory]], [decoder_memory] * 3 + [7], [-100] * 3 + [7]
    assert memory_counts(collator, collator([{"sample": good}])) == (3, 3)
    for sample, message in (
        ((good[0][:1], good[1], good[2]), "the prompt has 3 memory tokens, but its passages give 1"),
        ((good[0], good[1], good[2][:-1]), "the sample has 3 labels for 4 tokens"),
        ((good[0], good[1], [-100] * 4), "the sample has no label, so nothing can be learned from it"),
    ):
        with pytest.raises(TrainingError, match=rf"^data\.jsonl:3: {message}"):
            collator([{"sample": good, "origin": "data.jsonl:2"}, {"sample": sample, "origin": "data.jsonl:3"}])


def test_a_prompt_that_is_too_long_is_refused_with_its_line(tiny, lines):
    short = {"documents": [{"text": "a"}], "question": "b", "answer": "c"}
    path = lines(json.dumps(short), "", json.dumps(short | {"answer": "c " * 90}))
    collator = QuestionAnswering(tiny, PLAIN, max_tokens=150)
    records = [{**record, "origin": origin} for origin, record in read_conversations([str(path)])]
    collator(records[:1])
    with pytest.raises(TrainingError, match=rf"{path}:3: the prompt with its answer has \d+ tokens, but only 150 fit"):
        collator(records)
