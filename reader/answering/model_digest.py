"""The digest of a model's folder, by which a continued run notices that the model was replaced."""

from pathlib import Path

from ...model.loading.files import digest_weights

# Endings of the files that a model and its tokenizer are loaded from: weights, settings, vocabulary, chat template.
_SUFFIXES = frozenset({".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"})


def digest_model_folder(folder: Path) -> str:
    """Return a digest of a model's weights, settings and tokenizer, as 32 hexadecimal digits.

    Samples stand for large files (see ``digest_weights``), so that each start reads at most 16 MiB of each.

    Args:
        folder: folder of the model, such as a base decoder (see ``Checkpoint.decoder_folder``).
    """
    return digest_weights(sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()))
