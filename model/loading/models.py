"""Load models and tokenizers with transformers: local files only, every weight present, no code from the folder."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ...errors import CheckpointError
from .bases import local_folder
from .files import checkpoint_errors
from .inspection import read_model_config, require_weights
from .tensors import load_model_tensors, require_finite
from .weight_files import weight_files


def load_model(
    auto_class: Any,
    name: str,
    dtype: torch.dtype | Literal["auto"],
    *,
    is_leftover: Callable[[str], bool] = lambda _: False,
) -> Any:
    """Load a transformers model, in eval mode on the CPU.

    Args:
        auto_class: transformers class to load it by.
        name: folder, or hub name in the cache.
        dtype: dtype of the weights.
        is_leftover: returns True for a weight that the model has no place for, if that is an error.

    Raises:
        CheckpointError: the model cannot be found, or its weights do not fill its architecture.
    """
    folder = local_folder(name)
    config = load_model_config(folder)
    with quiet_transformers():
        require_weights(folder, name, auto_class, config)
    files = weight_files(folder, name)
    if files[0].suffix == ".bin":
        state: dict[str, torch.Tensor] = {}
        for path in files:
            state |= load_model_tensors(path)
        return model_of_state(auto_class, config, state, dtype, name, is_leftover=is_leftover)
    with checkpoint_errors(f"{name}: cannot be loaded"), quiet_transformers():
        model, report = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            # None takes SDPA where the architecture has it. Without this argument and the configuration beside it, a
            # config.json could name an attention kernel to download.
            config=config,
            attn_implementation=None,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            # Mismatched weights are named in the report.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return _checked(model, report, name, is_leftover)


def model_of_state(
    auto_class: Any,
    config: Any,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype | Literal["auto"],
    origin: object,
    *,
    is_leftover: Callable[[str], bool] = lambda _: True,
) -> Any:
    """Make a transformers model of its configuration and weights, in eval mode on the CPU.

    Args:
        auto_class: transformers class to make it by.
        config: transformers configuration.
        state: weights by name.
        dtype: dtype of the weights.
        origin: name of their file in messages.
        is_leftover: returns True for a weight that the model has no place for, if that is an error.

    Raises:
        CheckpointError: a weight is missing, has a wrong shape, is not finite, or has no place.
    """
    with checkpoint_errors(f"{origin}: its configuration makes no model"):
        model_class = auto_class._model_mapping[type(config)]
    with checkpoint_errors(f"{origin}: cannot be loaded"), quiet_transformers():
        model, report = model_class.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=state,
            dtype=dtype,
            attn_implementation=None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return _checked(model, report, origin, is_leftover)


def empty_model(auto_class: Any, config: Any, origin: object, tensors: int | None = None) -> Any:
    """Return a model without weights (on the meta device), to compare names and shapes with.

    Args:
        auto_class: transformers class to make it by.
        config: transformers configuration.
        origin: name of the configuration's folder in messages.
        tensors: number of tensors that the model's files hold, if known: every layer has at least one.

    Raises:
        CheckpointError: the configuration makes no model, or has more layers than its files.
    """
    layers = getattr(config, "num_hidden_layers", 1)
    if tensors is not None and not 1 <= layers <= tensors:
        raise CheckpointError(f"{origin}: its config.json says {layers} layers, and its files hold {tensors} tensors.")
    with checkpoint_errors(f"{origin}: its configuration makes no model"), torch.device("meta"), quiet_transformers():
        return auto_class.from_config(copy.deepcopy(config), attn_implementation=None, trust_remote_code=False).eval()


def _checked(model: Any, report: Any, origin: object, is_leftover: Callable[[str], bool]) -> Any:
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise CheckpointError(
            f"{origin}: {len(wrong)} weights are missing or of a wrong shape, the first: {sorted(map(str, wrong))[0]}."
        )
    if leftover := sorted(name for name in report["unexpected_keys"] if is_leftover(name)):
        raise CheckpointError(f"{origin}: {len(leftover)} weights have no place, the first: {leftover[0]}.")
    for parameter_name, values in model.named_parameters():
        require_finite(origin, parameter_name, values)
    return model.eval().requires_grad_(False)


def load_model_config(folder: Path) -> Any:
    """Return a model folder's transformers configuration.

    Raises:
        CheckpointError: it is missing or damaged, or asks for other files, libraries or absurd sizes.
    """
    read_model_config(folder)
    with checkpoint_errors(f"{folder}: no model configuration could be loaded"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def count_parameters(folder: Path, auto_class: Any, config: Any) -> int:
    """Return the number of parameters of a model, without loading it.

    Raises:
        CheckpointError: the folder's weights do not fit the configuration.
    """
    with quiet_transformers():
        return require_weights(folder, str(folder), auto_class, config)


def load_tokenizer(name: str | Path) -> Any:
    """Load a tokenizer. Without a pad token it pads with BOS, or with EOS if it has no BOS.

    Raises:
        CheckpointError: the tokenizer cannot be found or is damaged.
    """
    folder = local_folder(name)
    with checkpoint_errors(f"{name}: no tokenizer could be loaded"):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.bos_token or tokenizer.eos_token
    return tokenizer


def require_rows(model: Any, tokenizer: Any, origin: object) -> None:
    """Check that a model's embedding table has a row for every token of a tokenizer.

    Raises:
        CheckpointError: it has too few rows.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    if rows < tokens:
        raise CheckpointError(
            f"{origin}: {rows} embedding rows for a tokenizer of {tokens} tokens. Some tokens have no embedding."
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing progress bars and reporting unused weights while it reads or writes a model."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
