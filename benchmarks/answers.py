"""Measure how fast questions are answered from memory, one by one and together, and from text by the same decoder.

First the shipped checkpoint on held-out Tinypedia, in float32, from the ids of each question's documents to the answer:
one article (k = 1) and five (k = 5). Each way takes its turn in every round, and its best round counts, because other
programs on the machine only make it slower. "as before" is transformers' ``generate`` over batches of 32 in the order
of the file. Every way's answers are compared with those one by one.

Then a decoder of Qwen3-0.6B's shape with random weights: five documents, as memory or as text. Both prompts have the
same further tokens, and all answers the same length.

    python benchmarks/answers.py --batches 1 8 --dtype bfloat16
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from gpu import TokenizerStub
from measure import CHECKPOINT, options, positive, print_json, seconds
from qwen import MEMORY, RATE, qwen_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from pisco_index import Reader, build, load_config
from pisco_index.model.connector import Connector
from pisco_index.model.decoder import Decoder
from pisco_index.model.decoding.running import RunningBatch
from pisco_index.model.generation import GenerationDefaults
from pisco_index.model.memory import Memory
from pisco_index.reader.answering import Answering
from pisco_index.reader.memory_source import StoredMemory
from pisco_index.reader.questions.question import Question
from pisco_index.training.tinypedia import write

# Longer than any answer in Tinypedia.
NEW_TOKENS = 16
BATCH_BEFORE = 32
# Tokens of the question and the chat template in a prompt of random tokens.
FURTHER_TOKENS = 60
DOCUMENTS, DOCUMENT_TOKENS = 5, 128


class Way(NamedTuple):
    """A way to answer some questions.

    Attributes:
        run: function that returns their answers.
        questions: number of questions.
    """

    run: Callable[[], list[str]]
    questions: int


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--articles", type=positive, default=60, help="number of articles")
    parser.add_argument("--rounds", type=positive, default=3, help="number of rounds")
    parser.add_argument("--singles", type=positive, default=48, help="number of questions answered one by one")
    parser.add_argument("--layers", type=int, default=28, help="layers of the decoder with random weights; 0 skips it")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="dtype of that decoder")
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8], help="numbers of its questions")
    parser.add_argument("--new-tokens", type=positive, default=32, help="tokens of each of its answers")
    args = parser.parse_args()

    result = tinypedia(args)
    if args.layers:
        result |= random_weights(args)
    if args.json:
        print_json(result)


# The shipped checkpoint


def tinypedia(args: argparse.Namespace) -> dict[str, Any]:
    """Print and return questions per second of each way, for one document and for five."""
    decoder = Decoder.load(CHECKPOINT, dtype=torch.float32)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder, "held-out", count=args.articles, seed=0)
        build([folder / "corpus.jsonl"], CHECKPOINT, folder / "store", load_config("tinypedia"))
        with Reader(folder / "store") as reader:
            for k in (1, 5):
                questions = read_questions(folder, k)
                ways = ways_of(decoder, reader, questions, read_texts(folder), args.singles)
                result |= {f"k{k}_{name}": value for name, value in race(k, ways, args.rounds).items()}
    return result


def ways_of(
    decoder: Decoder, reader: Reader, questions: Sequence[Question], texts: Mapping[str, str], singles: int
) -> dict[str, Way]:
    source = StoredMemory(reader)
    nothing = reader.fetch([])

    def batch(chosen: Sequence[Question], new_tokens: int = NEW_TOKENS) -> list[str]:
        memories = list(source.memories([(question.text, question.doc_ids) for question in chosen]))
        return decoder.answer_batch([each.text for each in chosen], memories, max_new_tokens=new_tokens)

    def from_text(chosen: Sequence[Question], new_tokens: int = NEW_TOKENS) -> list[str]:
        prompts = [decoder.prompt_ids(each.text, [texts[doc_id] for doc_id in each.doc_ids]) for each in chosen]
        generated = decoder.generate(prompts, [nothing] * len(chosen), max_new_tokens=new_tokens)
        return [decoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in generated]

    def together() -> list[str]:
        answering = Answering(source, decoder, max_new_tokens=NEW_TOKENS)
        return [str(answered.answer) for answered in answering.answer(questions)]

    def before() -> list[str]:
        with by_transformers():
            return [each for part in parts(questions, BATCH_BEFORE) for each in batch(part)]

    first = questions[:singles]
    return {
        "one by one": Way(lambda: [each for part in parts(first, 1) for each in batch(part)], len(first)),
        "as before": Way(before, len(questions)),
        "together": Way(together, len(questions)),
        "text, together": Way(lambda: from_text(questions), len(questions)),
        "first token": Way(lambda: [each for part in parts(first, 1) for each in batch(part, 1)], len(first)),
        "text, first token": Way(lambda: [each for part in parts(first, 1) for each in from_text(part, 1)], len(first)),
    }


def race(k: int, ways: Mapping[str, Way], rounds: int) -> dict[str, float]:
    """Print each way's questions per second and the share of its answers that equal those one by one."""
    best: dict[str, float] = {}
    answers: dict[str, list[str]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            took = seconds(lambda name=name, way=way: answers.update({name: way.run()}))
            best[name] = max(best.get(name, 0), way.questions / took)
    single = answers["one by one"]
    print(f"\nk = {k}, {ways['together'].questions} questions")
    print(f"{'':20} {'questions/s':>12} {'ratio':>7} {'same answers':>13}")
    for name, speed in best.items():
        share = statistics.mean(a == b for a, b in zip(single, answers[name], strict=False))
        same = "-" if name.endswith("first token") else f"{share:.1%}"
        print(f"{name:20} {speed:12.1f} {speed / best['one by one']:7.2f} {same:>13}")
    whole = statistics.mean(a == b for a, b in zip(answers["as before"], answers["together"], strict=True))
    print(f"{whole:.1%} of the answers together are those of before")
    return best | {"same_as_before": whole}


def read_questions(folder: Path, k: int) -> list[Question]:
    """Return the questions with the article that holds the answer, or with ``k`` articles of the run."""
    run: dict[str, list[str]] = {}
    for line in (folder / "run.trec").read_text().splitlines():
        query, _, doc_id, *_ = line.split()
        run.setdefault(query, []).append(doc_id)
    questions = []
    for line in (folder / "questions.jsonl").read_text().splitlines():
        values = json.loads(line)
        doc_ids = values["doc_ids"] if k == 1 else run[values["id"]]
        questions.append(Question(values["id"], values["question"], (), tuple(doc_ids[:k])))
    return questions


def read_texts(folder: Path) -> dict[str, str]:
    records = map(json.loads, (folder / "corpus.jsonl").read_text().splitlines())
    return {record["_id"]: f"{record['title']}: {record['text']}" for record in records}


def parts(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    return (questions[i : i + size] for i in range(0, len(questions), size))


@contextmanager
def by_transformers() -> Iterator[None]:
    """Let transformers' ``generate`` decode."""
    with patch.object(RunningBatch, "supports", lambda _: False):
        yield


# Random weights


def random_weights(args: argparse.Namespace) -> dict[str, Any]:
    """Print and return seconds and FLOPs with memory and with text, for each number of questions in a batch."""
    decoder = make_decoder(args.layers, getattr(torch, args.dtype))
    # The first call of each kind of computation takes longer.
    decoder.generate(*([each] for each in prompt_of(decoder, "memory")), max_new_tokens=2)
    result: dict[str, Any] = {}
    print(
        f"\nQwen3-0.6B's shape, {args.layers} layers, {args.dtype}: {DOCUMENTS} documents of {DOCUMENT_TOKENS} tokens"
    )
    print(f"{'':24} {'memory':>10} {'text':>10} {'ratio':>7}")
    for size in args.batches:
        found = {kind: measure(decoder, prompt_of(decoder, kind), size, args) for kind in ("memory", "text")}
        for name, memory in found["memory"].items():
            text = found["text"][name]
            print(f"{f'{size}: {name}':24} {memory:10.3f} {text:10.3f} {text / memory:7.2f}")
            result[f"batch{size}_{name}"] = {"memory": memory, "text": text, "ratio": text / memory}
    return result


def make_decoder(layers: int, dtype: torch.dtype) -> Decoder:
    """Return a decoder whose answers never end before their last token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(qwen_config(layers), dtype=dtype, attn_implementation="sdpa").eval()
    width = model.config.hidden_size
    decoder = Decoder(model, TokenizerStub(), Connector(width, width, width))
    decoder.generation = GenerationDefaults(stop_token_ids=())
    return decoder


def prompt_of(decoder: Decoder, kind: str) -> tuple[list[int], Memory]:
    """Return the token ids of a prompt whose documents are memory or text, and their memory."""
    generator = torch.Generator().manual_seed(0)
    vectors = DOCUMENTS * (DOCUMENT_TOKENS // RATE) if kind == "memory" else 0
    documents = [MEMORY] * vectors
    if kind == "text":
        documents = torch.randint(1, MEMORY, (DOCUMENTS * DOCUMENT_TOKENS,), generator=generator).tolist()
    further = torch.randint(1, MEMORY, (FURTHER_TOKENS,), generator=generator).tolist()
    half = FURTHER_TOKENS // 2
    values = torch.randn(vectors, decoder.model.config.hidden_size, generator=generator)
    return further[:half] + documents + further[half:], Memory(values, (vectors,), "hidden", decoder.memory_digest)


def measure(
    decoder: Decoder, prompt: tuple[list[int], Memory], size: int, args: argparse.Namespace
) -> dict[str, float]:
    ids, memory = prompt

    def run(new_tokens: int) -> float:
        return seconds(lambda: decoder.generate([ids] * size, [memory] * size, max_new_tokens=new_tokens))

    first, whole = run(1), run(args.new_tokens)
    return {"first token, s": first, "whole answer, s": whole, "prefill, TFLOP": tflop(args.layers, len(ids), size)}


def tflop(layers: int, length: int, size: int) -> float:
    """Count the operations of reading prompts, on a model without weights. Causal attention counts as if full."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(qwen_config(layers), attn_implementation="sdpa").eval()
        prompts = [torch.empty(length, model.config.hidden_size)] * size
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        RunningBatch(model, prompts).read()
    return counter.get_total_flops() / 1e12


if __name__ == "__main__":
    main()
