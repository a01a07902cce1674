"""Write the decoder of a checkpoint as a plain model folder, for an inference server such as vLLM."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ...errors import CheckpointError
from ..create import require_new_folder
from ..decoder import Decoder
from ..loading.models import quiet_transformers
from ..memory import Memory
from .checkpoint import Checkpoint
from .convert import (
    QUESTION,
    TOLERANCE,
    draft_folder,
    relative_difference,
    save_finite_model,
    save_generation,
    save_tokenizer,
)
from .merged import MergedCheckpoint
from .on_base import OnBaseCheckpoint

# Memory vectors of the prompt by which both are compared.
_VECTORS = 8
# Written before a chat template: the parts of a message become one text, and thinking is off, as in our own prompts.
_PARTS_TO_TEXT = (
    "{%- set enable_thinking = false -%}"
    "{%- set joined = namespace(messages=[]) -%}"
    "{%- for each in messages -%}"
    "{%- if each.content is string -%}"
    "{%- set joined.messages = joined.messages + [each] -%}"
    "{%- else -%}"
    "{%- set text = each.content | map(attribute='text') | join -%}"
    "{%- set joined.messages = joined.messages + [dict(each, content=text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = joined.messages -%}"
)


@dataclass(frozen=True)
class ExportedDecoder:
    """A decoder that was exported, opened again, and compared with its original.

    Attributes:
        path: folder of the model.
        dtype: dtype of the weights.
        width: width of its embeddings.
        bytes: size of the folder.
        logits_difference: largest difference of the first logits of an answer, as a fraction of their largest value.
    """

    path: Path
    dtype: str
    width: int
    bytes: int
    logits_difference: float

    def to_dict(self) -> Mapping[str, Any]:
        """Return the values for JSON."""
        return asdict(self) | {"path": str(self.path)}


def export_decoder(checkpoint: Checkpoint, out: str | Path, *, dtype: torch.dtype = torch.bfloat16) -> ExportedDecoder:
    """Write a checkpoint's decoder with its adapters merged, its tokenizer, and a chat template that takes parts.

    The folder is opened with transformers and compared with the original before it appears.

    Args:
        checkpoint: a checkpoint of any family.
        out: a folder that does not exist or is empty.
        dtype: dtype of the weights.

    Raises:
        CheckpointError: ``out`` holds something, or the written decoder computes something else than the original.
    """
    out = require_new_folder(out)
    # The compressor's weights are not needed, and the decoder is merged into its own.
    alone: Any = checkpoint.unshared() if isinstance(checkpoint, OnBaseCheckpoint | MergedCheckpoint) else checkpoint
    decoder = Decoder.load(alone, dtype=dtype)
    width = decoder.model.get_input_embeddings().weight.shape[1]
    ids = decoder.prompt_ids(QUESTION, [_VECTORS])
    embeddings = decoder.embed(ids, _memory(decoder, width))
    with draft_folder(out) as draft:
        table, head = (
            each().weight for each in (decoder.model.get_input_embeddings, decoder.model.get_output_embeddings)
        )
        if head.data_ptr() == table.data_ptr():
            # One tensor is written once. A reader would give the other random numbers if this setting were missing.
            decoder.model.config.tie_word_embeddings = True
        # The settings that count are written below. Others may be invalid, and transformers would refuse to save them.
        decoder.model.generation_config = GenerationConfig()
        save_finite_model(decoder.model, draft, checkpoint.path)
        save_tokenizer(decoder.tokenizer, draft)
        save_generation(decoder.generation, draft)
        template = decoder.tokenizer.chat_template
        if isinstance(template, str):
            (draft / "chat_template.jinja").write_text(_PARTS_TO_TEXT + template, "utf-8")
        difference = _compare(decoder, draft, ids, embeddings)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return ExportedDecoder(out, str(dtype).removeprefix("torch."), width, size, difference)


def _memory(decoder: Decoder, width: int) -> Memory:
    """Return memory as wide as the decoder's embeddings, and of their size."""
    like = decoder.model.get_input_embeddings().weight
    values = torch.randn(_VECTORS, width, generator=torch.Generator().manual_seed(0)) * like.float().std()
    return Memory(values, (_VECTORS,), "embedding", decoder.memory_digest)


@torch.inference_mode()
def _compare(decoder: Decoder, draft: Path, ids: list[int], embeddings: torch.Tensor) -> float:
    """Return the difference of the first logits of an answer.

    Raises:
        CheckpointError: it is larger than rounding makes it, or the tokenizer or the chat template differ.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(draft)
    text = decoder.tokenizer.decode(ids)
    again = (each(text, add_special_tokens=False)["input_ids"] for each in (tokenizer, decoder.tokenizer))
    if len({tuple(each) for each in again}) > 1:
        raise CheckpointError(f"{draft}: the written tokenizer gives other tokens than the original's.")
    if tokenizer.chat_template:
        contents = QUESTION, [{"type": "text", "text": QUESTION[:2]}, {"type": "text", "text": QUESTION[2:]}]
        chats = [
            each.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True,
                enable_thinking=False)
            for each, content in ((decoder.tokenizer, contents[0]), *((tokenizer, content) for content in contents))
        ]  # fmt: skip
        if len(set(chats)) > 1:
            raise CheckpointError(f"{draft}: the written chat template does not keep a message as the original does.")
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(draft, dtype=decoder.dtype).eval()
    expected, found = (each(inputs_embeds=embeddings[None]).logits[0, -1].float() for each in (decoder.model, model))
    difference = relative_difference(found, expected)
    # Written so that a NaN fails, too.
    if not difference <= TOLERANCE[decoder.dtype]:
        raise CheckpointError(
            f"The first logits of the exported decoder differ by {difference:.2g} from the original's, relative to its "
            f"largest value; at most {TOLERANCE[decoder.dtype]:g} is rounding in {decoder.dtype}. Nothing was kept."
        )
    return difference
