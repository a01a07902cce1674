"""The commands of ``train``: ``pretrain``, ``finetune``, ``distill`` and ``tinypedia``."""

import os
import shlex
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..configs import (
    CompressionConfig,
    CorpusConfig,
    FinetuningConfig,
    PretrainingConfig,
    load_finetuning,
    load_pretraining,
)
from ..configs.names import Dtype
from ..errors import InputError
from ..places import local_path
from .console import bar, count, say
from .options import BatchSize, Corpus, Device, Documents, Given, MaxNewTokens, Preset, Run, arguments_of, flags_of

if TYPE_CHECKING:
    from ..model.families import Checkpoint


@flags_of(PretrainingConfig, "checkpoint", "out", "decoder", "compression.max_length", "corpus.format")
def pretrain(
    data: Annotated[list[str] | None, typer.Argument(metavar="CORPUS", help="Corpus files or folders.")] = None,
    config: Preset = None,
    *,
    given: Given,
) -> None:
    """Teach a checkpoint's memory to carry a text. Run it again to resume after a stop.

    Example: pisco-index train pretrain corpus.jsonl -c pisco -k CHECKPOINT -o pretrained/
    """
    _require_training_extra()
    from ..training import train

    settings = load_pretraining(config, {**given, "data": tuple(data or ()) or None})
    was_finished = train.is_finished(settings)
    trained = train.pretrain(settings)
    following = f"pisco-index train finetune CONVERSATIONS -k {shlex.quote(str(trained.path))} -o DIR"
    _say_trained(trained, was_finished, f"Next: {following}")


@flags_of(FinetuningConfig, "checkpoint", "out", "decoder", "compression.max_length")
def finetune(
    data: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="JSON lines of conversations.")] = None,
    config: Preset = None,
    *,
    given: Given,
) -> None:
    """Teach a checkpoint's decoder to answer from memory. Run it again to resume after a stop.

    Example: pisco-index train finetune conversations.jsonl -c pisco -k pretrained/ -o trained/
    """
    _require_training_extra()
    from ..training import train

    settings = load_finetuning(config, {**given, "data": tuple(data or ()) or None})
    was_finished = train.is_finished(settings)
    trained = train.finetune(settings)
    if settings.query_dependent:
        following = "Its memory depends on the question and cannot be precomputed."
    else:
        build = f"pisco-index build CORPUS -k {shlex.quote(str(trained.path))} -o URI"
        following = f"Next: {build}{_build_options(settings.compression)}"
    _say_trained(trained, was_finished, following)


@flags_of(CorpusConfig, "format", "passage_words")
def distill(
    corpus: Corpus,
    questions: Annotated[
        Path,
        typer.Option(
            "--questions",
            "-q",
            metavar="FILE",
            help="JSON lines with question and doc_ids; with --run, question and id.",
        ),
    ],
    teacher: Annotated[
        str, typer.Option("--teacher", "-t", metavar="DIR", help="Model folder of the teacher, any causal LM.")
    ],
    to: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON lines to write, or to resume.")],
    given: Given,
    run: Run = None,
    documents: Documents = None,
    max_new_tokens: MaxNewTokens = 128,
    batch_size: BatchSize = 16,
    dtype: Annotated[Dtype, typer.Option(help="Dtype that the teacher computes in.")] = "bfloat16",
    device: Device = "auto",
) -> None:
    """Let a teacher answer questions from documents' text, as data for finetune. Run it again to resume after a stop.

    Example: pisco-index train distill corpus.jsonl -q questions.jsonl -t TEACHER -o conversations.jsonl
    """
    from ..training.distill import distill as answer_questions

    with bar("answers") as progress:
        result = answer_questions(
            questions,
            corpus,
            teacher,
            to,
            run=run,
            documents=documents,
            corpus_config=CorpusConfig.parse(given, "command line"),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    left_out = f", {result.empty:,} empty and left out" if result.empty else ""
    if result.unfinished:
        left_out += f", {result.unfinished:,} longer than {max_new_tokens} tokens and left out"
    say(
        f"{to}: {count(result.written, 'answer')} written ({result.before:,} before){left_out}. "
        f"Next: pisco-index train finetune {shlex.quote(str(to))} -k CHECKPOINT -o DIR"
    )


def tinypedia(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write the data to.")],
    split: Annotated[
        Literal["train", "held-out"],
        typer.Option(help="Data to train on, or held-out data: no invented word is in both."),
    ] = "train",
    articles: Annotated[int, typer.Option(min=1, help="Number of articles in the corpus.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed; another one gives other articles.")] = 0,
    documents: Annotated[int, typer.Option(min=1, help="Number of documents per question in the run.")] = 5,
    conversations: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of conversations in each of three files for finetune: conversations.jsonl; "
            "short-conversations.jsonl, about short articles that differ in their titles only; and recitals.jsonl, "
            "which end with an article's text. 0 writes none.",
        ),
    ] = 0,
) -> None:
    """Write Tinypedia, articles about an invented world: corpus.jsonl, questions.jsonl, run.trec.

    Example: pisco-index train tinypedia data/ --articles 1000 --conversations 1000
    """
    from ..training import tinypedia as world

    world.write(folder, split, count=articles, seed=seed, documents=documents)
    if conversations:
        for name, drawn in (
            ("conversations", world.conversations),
            ("short-conversations", world.short_conversations),
            ("recitals", world.recitals),
        ):
            world.write_conversations(
                local_path(folder) / f"{name}.jsonl", islice(drawn(split, seed=seed), conversations)
            )
    written = f"{count(articles, 'article')}" + f", {count(conversations, 'conversation')}" * bool(conversations)
    say(f"{folder}: {written} of the {split} split")


def _require_training_extra() -> None:
    if missing := [name for name in ("accelerate", "peft") if find_spec(name) is None]:
        raise InputError(
            f"training needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Install what training needs: pip install accelerate peft"
        )


def _build_options(compression: CompressionConfig) -> str:
    """Return the options with which ``build`` makes memory as training did."""
    # Training has its own dtype (trainer.bf16), so compression.dtype says nothing about the model.
    return "".join(f" {shlex.quote(word)}" for word in arguments_of(compression, without=("dtype",)))


def _say_trained(checkpoint: "Checkpoint", was_finished: bool, following: str) -> None:
    # A launcher starts one process per GPU, on one machine or many: only the first one speaks.
    if os.environ.get("RANK", "0") == "0":
        done = ", finished before: nothing was done" if was_finished else ""
        say(f"{checkpoint.path}: trained checkpoint{done}. {following}")
