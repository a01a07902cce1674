"""Find the folders of models: by path, beside a checkpoint, or by hub name in the local Hugging Face cache."""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ...errors import CheckpointError
from .files import require_own_files


def local_folder(name: str | Path, flag: str = "for a base decoder: --decoder-base") -> Path:
    """Return a model folder, or the cached snapshot of a hub name.

    transformers, given a hub name, would ask the network even for files that are in the cache.

    Args:
        name: folder or hub name.
        flag: the flag that names another folder, for messages.

    Raises:
        CheckpointError: the name is neither a folder nor in the cache, or a file in the folder is a link that leads
            out of it.
    """
    folder = None
    with suppress(HFValidationError, OSError):
        if Path(name).is_dir():
            folder = Path(name)
        elif isinstance(cached := try_to_load_from_cache(str(name), "config.json"), str):
            folder = Path(cached).parent
    if folder is not None:
        require_own_files(folder)
        return folder
    raise CheckpointError(
        f"{name}: neither a model folder nor in the Hugging Face cache. Name a folder ({flag}), or download it first "
        f"(hf download {name})."
    )


def find_decoder_base(
    checkpoint: Path,
    name: str,
    *,
    is_trusted: bool,
    key: str = "decoder_model_name",
    model: str = "base decoder",
    flag: str = "--decoder-base",
) -> str:
    """Return the folder of a checkpoint's base decoder, or its name if that can only be a hub name.

    The folder may be absolute, in the checkpoint, beside it, or in the working folder. A hub name is looked up when
    the model is loaded.

    Args:
        checkpoint: folder of the checkpoint.
        name: path or hub name of the base decoder.
        is_trusted: True for a name that the user gave. A name that the checkpoint gives must not lead out of the
            checkpoint's folder by ``..`` or by a link.
        key: key of ``config.json`` that the name stands under, for messages.
        model: what the base is to the checkpoint, for messages.
        flag: the flag that names another base, for messages.

    Raises:
        CheckpointError: a path is no model folder, or a name that is not trusted leads out of the checkpoint.
    """
    leads_out = CheckpointError(
        f"{checkpoint / 'config.json'}: {key} {name!r} leads out of the checkpoint's folder. If you trust "
        f"that place, name it yourself ({flag})."
    )
    if not is_trusted and ".." in Path(name).parts:
        raise leads_out
    own = checkpoint.resolve()
    for root in (own, checkpoint.absolute().parent, Path.cwd()):
        folder = _model_folder(root, name)
        if folder is None:
            continue
        by_link = root == own and not Path(name).expanduser().is_absolute() and not folder.is_relative_to(own)
        if by_link and not is_trusted:
            raise leads_out
        return str(folder)
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise CheckpointError(f"{checkpoint}: the {model} {name!r} is no model folder. Name another one ({flag}).")
    return name


def base_folder(checkpoint: Path, name: str, *, is_trusted: bool, key: str, model: str, flag: str) -> Path:
    """Return the folder of a checkpoint's base model, in the Hugging Face cache or elsewhere.

    The arguments are those of ``find_decoder_base``.

    Raises:
        CheckpointError: naming the base and the flag, if it is not there or leads out of the checkpoint.
    """
    found = find_decoder_base(checkpoint, name, is_trusted=is_trusted, key=key, model=model, flag=flag)
    try:
        return local_folder(found, flag)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: its {model}: {error}") from None


def _model_folder(root: Path, name: str) -> Path | None:
    """Return the folder of that name, links followed, if it holds a model."""
    # A checkpoint may give a name that the file system does not take.
    with suppress(OSError, ValueError, RuntimeError):
        folder = root / Path(name).expanduser()
        if (folder / "config.json").is_file():
            return folder.resolve()
    return None
