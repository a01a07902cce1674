"""Make and save checkpoints of family "pisco"."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ..errors import CheckpointError
from ..places import local_path
from .connector import Connector
from .families.pisco import CheckpointConfig, PiscoCheckpoint
from .loading.adapters import ORIGINAL, SAVED_COPY, embedding_names
from .loading.models import load_model, load_tokenizer, quiet_transformers
from .passages import AUTOENCODING_TOKEN, MEMORY_TOKEN

# Chat template for a decoder that has none, since it was never trained on turns: the same words in plain lines.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Answer: ' + m['content'] + (eos_token or '') }}"
    "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)


def new_checkpoint(
    out: str | Path,
    compressor: str | Path,
    decoder: str | Path,
    *,
    rate: int = 16,
    mlp_dim: int = 4096,
    lora_rank: int = 64,
    compressor_name: str | None = None,
    decoder_name: str | None = None,
    seed: int = 0,
) -> PiscoCheckpoint:
    """Make an untrained checkpoint from two causal LMs.

    The connector and the embeddings of added tokens are random. The LoRA pairs change nothing yet.

    Args:
        out: a folder that does not exist or is empty.
        compressor: model folder or cached hub name; its weights are copied.
        decoder: model folder or cached hub name; the checkpoint keeps its name and its extended embeddings.
        rate: number of source tokens per memory token.
        mlp_dim: inner width of the connector.
        lora_rank: rank of the decoder's LoRA pairs.
        compressor_name: name of the compressor's base in ``config.json``, e.g. a hub id; default: ``compressor``.
        decoder_name: name of the decoder's base in ``config.json``, by which it is loaded later; default: ``decoder``.
        seed: seed of everything random.

    Raises:
        CheckpointError: a model cannot be loaded, or the folder already holds something.
    """
    out = _empty_folder(out)
    compressor, decoder = (local_path(each, CheckpointError) for each in (compressor, decoder))
    with seeded(seed):
        compressor_tokenizer = _extend_tokenizer(compressor, [MEMORY_TOKEN])
        decoder_tokenizer = _extend_tokenizer(decoder, [MEMORY_TOKEN, AUTOENCODING_TOKEN])
        compressor_model = load_model(AutoModelForCausalLM, str(compressor), "auto")
        decoder_model = load_model(AutoModelForCausalLM, str(decoder), "auto")
        compressor_model.resize_token_embeddings(len(compressor_tokenizer), mean_resizing=False)
        if not decoder_tokenizer.chat_template:
            decoder_tokenizer.chat_template = PLAIN_TEMPLATE
        connector = Connector(
            compressor_model.config.hidden_size, mlp_dim, decoder_model.get_input_embeddings().weight.shape[1]
        )
        state = new_decoder_state(decoder_model, len(decoder_tokenizer), lora_rank)
    # The last four keys are for the reference implementation; this package ignores them.
    config = {
        "decoder_model_name": decoder_name or _lasting_name(decoder),
        "compressor_model_name": compressor_name or _lasting_name(compressor),
        "compr_rate": rate,
        "compressor_mlp_hidden_dim": mlp_dim,
        "lora_decoder": True,
        "lora_r_decoder": lora_rank,
        "attn_implementation": "sdpa",
        "device_map": None,
        "load_decoder": True,
        "decoder_gradient_checkpointing": False,
    }
    save_checkpoint(
        out,
        CheckpointConfig.model_validate(config),
        compressor=compressor_model,
        connector=connector,
        decoder_state=state,
        compressor_tokenizer=compressor_tokenizer,
        decoder_tokenizer=decoder_tokenizer,
    )
    return PiscoCheckpoint(out)


def save_checkpoint(
    out: str | Path,
    config: CheckpointConfig,
    *,
    compressor: Any,
    connector: Connector,
    decoder_state: Mapping[str, torch.Tensor],
    compressor_tokenizer: Any,
    decoder_tokenizer: Any,
) -> None:
    """Write a checkpoint folder.

    Args:
        out: a folder that does not exist or is empty.
        config: content of ``config.json``.
        compressor: the compressor as a causal LM, with its ``lm_head`` unless tied.
        connector: content of ``connector.pt``.
        decoder_state: content of ``decoder_state.pt``.
        compressor_tokenizer: tokenizer with ``<MEM>``.
        decoder_tokenizer: tokenizer with ``<MEM>`` and ``<AE>``.

    Raises:
        CheckpointError: the folder already holds something.
    """
    out = _empty_folder(out)
    save_model(compressor, out / "compressor")
    torch.save(connector.state(), out / "connector.pt")
    torch.save({name: tensor.detach().contiguous() for name, tensor in decoder_state.items()}, out / "decoder_state.pt")
    compressor_tokenizer.save_pretrained(out / "compressor_tokenizer")
    decoder_tokenizer.save_pretrained(out / "decoder_tokenizer")
    (out / "config.json").write_text(json.dumps(config.model_dump(), indent=2, sort_keys=True) + "\n", "utf-8")


def save_model(model: Any, folder: Path) -> None:
    """Write a model folder that transformers 4 can read, too."""
    with quiet_transformers():
        model.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text("utf-8"))
    rope = dict(values.get("rope_parameters") or {})
    if "rope_theta" in rope:
        # transformers 4 only knows the keys below. Without them it silently uses 10000, unscaled.
        values["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            values["rope_scaling"] = rope
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def new_decoder_state(model: Any, tokens: int, rank: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``decoder_state.pt`` whose LoRA pairs add nothing: A is random, B is zero.

    Args:
        model: the base decoder.
        tokens: number of rows of the new embedding and ``lm_head``.
        rank: rank of the LoRA pairs.
    """
    head = model.get_output_embeddings()
    state, resized = {}, {}
    for name in embedding_names(model):
        # Some heads have a bias (Phi), which is resized too.
        for kind, values in model.get_submodule(name).named_parameters():
            # Tied weights stay one tensor, which torch.save writes once.
            rows = resized.setdefault(id(values), _resize_rows(values, tokens))
            state[f"{name}.{ORIGINAL}.{kind}"] = rows
            state[f"{name}.{SAVED_COPY}.{kind}"] = rows
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            down = torch.empty(rank, module.in_features)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            up = torch.zeros(module.out_features, rank)
            state[f"{name}.lora_A.default.weight"] = down.to(module.weight.dtype)
            state[f"{name}.lora_B.default.weight"] = up.to(module.weight.dtype)
    return state


def _resize_rows(values: torch.Tensor, rows: int) -> torch.Tensor:
    resized = values.detach()[:rows].clone()
    missing = rows - resized.shape[0]
    if missing > 0:
        noise = torch.randn(missing, *values.shape[1:]) * float(values.float().std())
        resized = torch.cat([resized, noise.to(values.dtype)])
    return resized


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random numbers on the CPU, and restore the caller's random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _lasting_name(base: str | Path) -> str:
    """Return a folder's absolute path, so that the checkpoint finds it from anywhere, or the hub name."""
    return str(Path(base).resolve()) if Path(base).is_dir() else str(base)


def _extend_tokenizer(base: str | Path, added: list[str]) -> Any:
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"extra_special_tokens": added}, replace_extra_special_tokens=False)
    return tokenizer


def require_new_folder(path: str | Path) -> Path:
    """Return the path of a folder for a checkpoint.

    Raises:
        CheckpointError: the place is not local, or holds something already.
    """
    path = local_path(path, CheckpointError)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: holds something already; name a new folder for the checkpoint.")
    return path


def _empty_folder(path: str | Path) -> Path:
    path = require_new_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: the folder cannot be created: {error.strerror}.") from error
    return path
