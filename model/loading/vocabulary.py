"""Tokenizers of base models with the tokens that a checkpoint adds to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ...errors import CheckpointError
from .bases import local_folder
from .files import checkpoint_errors, read_json
from .models import load_tokenizer


def load_extended_tokenizer(name: str, added: Sequence[str], rows: int, origin: object) -> Any:
    """Load the tokenizer of a base model and add tokens to it, whose ids follow the tokenizer's length.

    Args:
        name: folder or cached hub name of the base model.
        added: tokens to add, in order.
        rows: number of rows of the checkpoint's embedding table.
        origin: name of the table's file in messages.

    Raises:
        CheckpointError: the tokenizer cannot be found, has such a token already, or does not have as many tokens as the
            table has rows.
    """
    tokenizer = load_tokenizer(name)
    if len(tokenizer) + len(added) != rows:
        # transformers may pick a class for the tokenizer that adds a token of its own. The plain class never does.
        with checkpoint_errors(f"{name}: no tokenizer could be loaded"):
            plain: Any = PreTrainedTokenizerFast.from_pretrained(local_folder(name), local_files_only=True)
        if len(plain) + len(added) == rows:
            plain.pad_token = plain.pad_token or plain.bos_token or plain.eos_token
            tokenizer = plain
    tokenizer.padding_side = _padding_side(local_folder(name)) or tokenizer.padding_side
    size, vocabulary = len(tokenizer), tokenizer.get_vocab()
    if taken := [token for token in added if token in vocabulary]:
        raise CheckpointError(f"{name}: the tokenizer has the token {taken[0]} already, which the checkpoint adds.")
    if size + len(added) != rows:
        raise CheckpointError(
            f"{origin}: the embedding table has {rows} rows, but the tokenizer of {name} has {size} tokens and the "
            f"checkpoint adds {len(added)}: {size + len(added)}. Is it the base this checkpoint was trained on?"
        )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(added))
    if ids != list(range(size, rows)):
        raise CheckpointError(f"{name}: the added tokens get the ids {ids}; expected {size} to {rows - 1}.")
    return tokenizer


def _padding_side(folder: Path) -> str | None:
    """Return the side on which a folder's tokenizer pads, by its settings or by the class that they name.

    transformers may use another class than the one named, with another default.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not isinstance(settings, dict):
        return None
    named = getattr(transformers, str(settings.get("tokenizer_class", "")), None)
    side = settings.get("padding_side", getattr(named, "padding_side", None))
    return side if side in ("left", "right") else None
