"""The digest of a model's folder, by which a continued run notices that the model was replaced."""

from pathlib import Path

from ...model.loading.files import digest_weights
from ...model.loading.weight_files import weight_files

# Files beside the weights that decide what a model says.
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def digest_model_folder(folder: Path) -> str:
    """Return a digest of a model's weights, settings and tokenizer, as 32 hexadecimal digits.

    Samples stand for large files (see ``digest_weights``), so that each start reads at most 16 MiB of each.

    Args:
        folder: folder of the model, such as a base decoder (see ``Checkpoint.decoder_folder``).

    Raises:
        CheckpointError: there are no weights, or which of several are meant cannot be known.
    """
    settings = [path for name in _SETTINGS if (path := folder / name).is_file()]
    return digest_weights([*weight_files(folder, str(folder)), *settings])
