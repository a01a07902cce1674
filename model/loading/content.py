"""Identify weights, configurations and tokenizers by what they compute, not by the bytes of their files.

The same model may be saved again: in other shards, in another format or dtype, or by another version of transformers,
which writes other keys and another order. None of that changes memory, so none of it changes these identities.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .inspection import read_model_config
from .models import quiet_transformers
from .tensors import mapped_tensors
from .weights import WeightFiles

# Values that are hashed at once.
_CHUNK = 1 << 20
# Evenly spaced blocks of values that are hashed of a large tensor, if not all are. Another model differs in nearly
# every value, and reading all of a base model would take as long as loading it.
_BLOCKS, _BLOCK = 8, 4096
# Keys of a configuration that do not change the states of a model in eval mode. The name of the file's dtype is one:
# models are loaded in the dtype of the build. The embedding is compared with the other tensors.
# fmt: off
_IGNORED = frozenset(
    {
        "_commit_hash", "_name_or_path", "architectures", "auto_map", "dtype", "finetuning_task", "id2label",
        "label2id", "name_or_path", "num_labels", "output_attentions", "output_hidden_states",
        "pretraining_tp", "problem_type", "return_dict", "task_specific_params", "tf_legacy_loss",
        "tie_word_embeddings", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version",
        "transformers.js_config", "use_bfloat16", "use_cache",
    }
)
# fmt: on
_IGNORED_PARTS = ("_token_id", "dropout", "_pdrop", "initializer_", "attn_implementation")
# A key that transformers' causal models do not declare, but read.
_ALSO_READ = frozenset({"is_causal"})
# Texts on which tokenizers differ: case, digits, blanks, line ends, composed and decomposed letters, scripts, code.
_TEXTS = (
    "",
    " ",
    "\n\n\t  \r\n",
    "The Quick brown FOX, aged 1234567.89, jumps over 12 dogs' backs -- it's they're WE'LL don't!?",
    "  two  spaces   three \u00a0\u2003\u200b\ufeff end ",
    "Caf\u00e9 cafe\u0301 \ufb01ne \u2460 \uff21\uff22 \u00c5 A\u030a stra\u00dfe \u0130stanbul \u01c5",
    "def f(x):\n    return {'a': [x**2, 0x1F], \"b\": x != None}\n\n\n# \u2014 \u201cquoted\u201d \u2026",
    "東京は日本の首都です。서울 Москва القاهرة दिल्ली กรุงเทพ",
    "\U0001f469\u200d\U0001f52c \U0001f1eb\U0001f1f7 \u00bd \u20ac \u221e \x00\x07 \ue000 \U000e0041",
)
# One in this many tokens of a vocabulary is also a text. All would take seconds.
_SPELLED = 8
# Number of such texts that are joined into one.
_JOINED = 64


def digest_model(weights: WeightFiles, *, whole: bool = True) -> str:
    """Return a digest of a model's weights without its output head, as 32 hexadecimal digits.

    It depends on names, shapes and values only: not on files, order, metadata, or the dtype that values are stored in.

    Args:
        weights: files of the weights.
        whole: True to read all values, False to read samples of each large tensor.

    Raises:
        CheckpointError: a file is damaged.
    """
    return digest_tensors(_of_base(weights.mapped()), whole=whole)


def digest_tensor_files(paths: list[Path]) -> str:
    """Return a digest of the tensors in ``.pt`` files, by their names in the files.

    Raises:
        CheckpointError: a file is damaged.
    """
    return digest_tensors({name: each for path in paths for name, each in mapped_tensors(path).items()})


def digest_tensors(tensors: Mapping[str, torch.Tensor], *, whole: bool = True) -> str:
    """Return a digest of named tensors on the CPU, as 32 hexadecimal digits (see ``digest_model``)."""

    def of_one(named: tuple[str, torch.Tensor]) -> bytes:
        name, values = named
        digest = hashlib.blake2b(f"{name}{tuple(values.shape)}".encode(), digest_size=16)
        for part in _parts(values.detach().reshape(-1), whole):
            digest.update(_exact(part))
        return digest.digest()

    # hashlib releases Python's lock, so that several tensors are hashed at once.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return hashlib.blake2b(b"".join(pool.map(of_one, sorted(tensors.items()))), digest_size=16).hexdigest()


def _of_base(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the base model by their names in it, without those that versions save or leave out."""
    kept = {
        name: each
        for name, each in tensors.items()
        if each.is_floating_point() and not name.startswith("lm_head.") and not name.endswith("rotary_emb.inv_freq")
    }
    # A causal model names its base, and a base model that was saved alone does not.
    prefixes = {name.partition(".")[0] for name in kept}
    prefix = f"{prefixes.pop()}." if len(prefixes) == 1 else ""
    return {name.removeprefix(prefix): each for name, each in kept.items()}


def _parts(values: torch.Tensor, whole: bool) -> Iterator[torch.Tensor]:
    if whole or len(values) <= _BLOCKS * _BLOCK:
        yield from values.split(_CHUNK)
        return
    for index in range(_BLOCKS):
        yield values.narrow(0, index * (len(values) - _BLOCK) // (_BLOCKS - 1), _BLOCK)


def _exact(values: torch.Tensor) -> Any:
    """Return bytes that depend on the values only: bfloat16 if that holds all of them exactly, else float32."""
    short = values.to(torch.bfloat16)
    is_short = values.dtype == torch.bfloat16 or bool((short.to(values.dtype) == values).all())
    return short.view(torch.int16).numpy() if is_short else values.float().numpy()


def described_config(folder: Path) -> str:
    """Return the settings of a model's ``config.json`` that may change its states, as canonical JSON.

    Raises:
        CheckpointError: the file is damaged.
    """
    values = {key: value for key, value in read_model_config(folder).items() if not _is_ignored(key)}
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def same_config(one: str, other: str) -> bool:
    """Return True if transformers makes the same settings of two descriptions by ``described_config``.

    Versions of transformers write other keys for the same settings, and leave out defaults or write them.
    """
    return one == other or (_settings(one) is not None and _settings(one) == _settings(other))


def _settings(described: str) -> dict[str, Any] | None:
    """Return the settings as the installed transformers reads them; None if it cannot."""
    try:
        with quiet_transformers():
            config = AutoConfig.for_model(**json.loads(described))
            known = type(config)().to_dict().keys() | _ALSO_READ
        return {key: value for key, value in config.to_dict().items() if key in known and not _is_ignored(key)}
    except Exception:  # noqa: BLE001 - configurations of unknown models fail in any way, and are then compared as texts
        return None


def _is_ignored(key: str) -> bool:
    return key in _IGNORED or any(part in key for part in _IGNORED_PARTS)


# Largest token id of a tokenizer whose merges are read.
_MAX_ID = 1 << 24


def digest_tokenizer(tokenizer: Any, *settings: object) -> str:
    """Return a digest of a tokenizer's vocabulary, its merges or scores, and the ids that it gives to many texts.

    Args:
        tokenizer: the tokenizer.
        settings: other settings of it that change memory.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    spelled = [token.replace("\u0120", " ").replace("\u2581", " ") for token, _ in vocabulary[::_SPELLED]]
    # Added tokens are found in the text by rules of their own: about blanks, words and letter case.
    added = [f"a{token}a  {token}  {token.swapcase()} a" for token in sorted(tokenizer.get_added_vocab())]
    parts = (part[start : start + _JOINED] for part in (spelled, added) for start in range(0, len(part), _JOINED))
    texts = [*_TEXTS, *map(" ".join, parts)]
    with quiet_transformers():
        ids = tokenizer(texts)["input_ids"]
    digest = hashlib.blake2b(json.dumps([ids, settings, _learned(tokenizer)]).encode(), digest_size=16)
    digest.update("".join(f"{token}\n{number}\n" for token, number in vocabulary).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _learned(tokenizer: Any) -> list[Any]:
    """Return the merges of a tokenizer, each as one string, or its scores; nothing for kinds without both."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # The library makes a list with a place for each id up to the largest one. No model has that many rows.
    is_sparse = max(tokenizer.get_vocab().values(), default=0) > _MAX_ID
    model = {} if backend is None or is_sparse else json.loads(backend.to_str())["model"]
    merges = [each if isinstance(each, str) else " ".join(each) for each in model.get("merges", ())]
    vocabulary = model.get("vocab")
    return merges + (vocabulary if isinstance(vocabulary, list) else [])
