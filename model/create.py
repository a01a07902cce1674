"""Making and saving checkpoints in the "pisco" layout."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ..errors import CheckpointError, is_address
from .connector import Connector
from .decoder import ORIGINAL, SAVED_COPY
from .families.pisco import Checkpoint, CheckpointConfig, load_model, load_tokenizer, quiet_transformers
from .passages import AUTOENCODING_TOKEN, MEMORY_TOKEN

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# For a decoder that was never taught turns: the same words in plain lines.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Answer: ' + m['content'] + (eos_token or '') }}"
    "{% else %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)


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
        config: written as ``config.json``.
        compressor: the causal LM, its ``lm_head`` included unless tied.
        connector: written as ``connector.pt``.
        decoder_state: written as ``decoder_state.pt``.
        compressor_tokenizer: with ``<MEM>``.
        decoder_tokenizer: with ``<MEM>`` and ``<AE>``.

    Raises:
        CheckpointError: if the folder holds something already.
    """
    out = _empty_folder(out)
    save_model(compressor, out / "compressor")
    torch.save(connector.state(), out / "connector.pt")
    torch.save({name: tensor.detach().contiguous() for name, tensor in decoder_state.items()}, out / "decoder_state.pt")
    compressor_tokenizer.save_pretrained(out / "compressor_tokenizer")
    decoder_tokenizer.save_pretrained(out / "decoder_tokenizer")
    (out / "config.json").write_text(json.dumps(config.model_dump(), indent=2, sort_keys=True) + "\n", "utf-8")


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
) -> Checkpoint:
    """Make an untrained checkpoint from two causal LMs.

    The connector and the added tokens' embeddings are random, the LoRA pairs change nothing yet.

    Args:
        out: a folder that does not exist or is empty.
        compressor: model folder (or cached hub name); its weights are copied.
        decoder: model folder (or cached hub name); the checkpoint keeps its name and changed embeddings.
        rate: source tokens per memory token.
        mlp_dim: the connector's inner width.
        lora_rank: rank of the decoder's LoRA pairs.
        compressor_name: what ``config.json`` shall call the compressor's base, e.g. a hub id; default: as given.
        decoder_name: likewise for the decoder's base, which is loaded by this name later.
        seed: of all that is random.

    Raises:
        CheckpointError: if a model cannot be loaded or the folder holds something.
    """
    _empty_folder(out)
    with _seeded(seed):
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
    config = CheckpointConfig.model_validate(
        {
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
    )
    save_checkpoint(
        out,
        config,
        compressor=compressor_model,
        connector=connector,
        decoder_state=state,
        compressor_tokenizer=compressor_tokenizer,
        decoder_tokenizer=decoder_tokenizer,
    )
    return Checkpoint(out)


def new_tiny_checkpoint(out: str | Path, *, rate: int = 16, seed: int = 0) -> Checkpoint:
    """Make a tiny random checkpoint (under 3 MB) with its two base models inside the folder.

    It shows that a pipeline works; its answers mean nothing.
    """
    tokenizer = _tiny_tokenizer()
    bases = {"base_compressor": 64, "base_decoder": 96}
    with TemporaryDirectory() as scratch, _seeded(seed):
        for name, width in bases.items():
            model: Any = Qwen3ForCausalLM(_tiny_config(width, len(tokenizer), tokenizer))
            save_model(model.to(torch.bfloat16), Path(scratch) / name)
            tokenizer.save_pretrained(Path(scratch) / name)
        compressor, decoder = (Path(scratch) / name for name in bases)
        new_checkpoint(
            out,
            compressor,
            decoder,
            rate=rate,
            mlp_dim=128,
            lora_rank=4,
            compressor_name=compressor.name,
            decoder_name=decoder.name,
            seed=seed,
        )
        for base in (compressor, decoder):
            shutil.copytree(base, Path(out) / base.name)
    return Checkpoint(out)


def _lasting_name(base: str | Path) -> str:
    """A folder's absolute path, so that the checkpoint finds it from wherever it is opened; else the hub name."""
    return str(Path(base).resolve()) if Path(base).is_dir() else str(base)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave the caller's random state as it was; everything here is made on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def new_decoder_state(model: Any, tokens: int, rank: int) -> dict[str, torch.Tensor]:
    """The tensors of a ``decoder_state.pt`` whose LoRA pairs add nothing: A random, B zero.

    Args:
        model: the base decoder.
        tokens: rows that its embedding and ``lm_head`` shall have.
        rank: of the LoRA pairs.
    """
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    state, resized = {}, {}
    for module in (model.get_input_embeddings(), head):
        # A head with a bias (Phi) has it resized too.
        for kind, values in module.named_parameters():
            # Tied ones are one tensor, and torch.save writes it once.
            rows = resized.setdefault(id(values), _resize_rows(values, tokens))
            state[f"{names[id(module)]}.{ORIGINAL}.{kind}"] = rows
            state[f"{names[id(module)]}.{SAVED_COPY}.{kind}"] = rows
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


def _extend_tokenizer(base: str | Path, added: list[str]) -> Any:
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"extra_special_tokens": added}, replace_extra_special_tokens=False)
    return tokenizer


def save_model(model: Any, folder: Path) -> None:
    """Write a model's folder, readable by transformers 4 too."""
    with quiet_transformers():
        model.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text("utf-8"))
    rope = dict(values.get("rope_parameters") or {})
    if "rope_theta" in rope:
        # Readers of transformers 4 know these keys only, and silently fall back to 10000 unscaled without them.
        values["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            values["rope_scaling"] = rope
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")


def _empty_folder(path: str | Path) -> Path:
    if is_address(path):
        raise CheckpointError(f"{path}: a checkpoint is written to a folder; copy it from there.")
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: holds something already; name a new folder for the checkpoint.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: the folder cannot be made: {error.strerror}.") from error
    return path


def _tiny_config(width: int, vocabulary: int, tokenizer: Any) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        max_position_embeddings=4096,
        initializer_range=0.08,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over every byte, with merges for the commonest English."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1, show_progress=False
    )
    backend.train_from_iterator([f" {word}" for word in _COMMON_WORDS.split()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **_TINY_SPECIAL_TOKENS)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


_TINY_SPECIAL_TOKENS: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_COMMON_WORDS = """
the of and to in a is was for on as by with at from that it his an he are were which be this has had its or also after
first new one their two not have but who been other during more when they all about into only most some between city
world time years became where there used through can made over known than between later part would under her
such while may then three state university national second born american century early being number both government
team since film south north called group until people against system war area including life district county name season
series several company history released house small large river church member four major following album population
station music family before within day end work many located village town game league club song played found building
species based local five water land west east place main line form great king general law international public power
professional student college law political served original service army member president story book written author
document documents question answer background helpful assistant extract relevant information provided briefly possible
capital country island mountain language science painting theory energy light metal animal plant bird fish tree
ing ed er es ly tion ment able al ous ive ness ful less ity ence ance ship ism ist ary ory
"""
