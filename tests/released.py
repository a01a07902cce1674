"""Write tiny random checkpoints in the layouts of the released ones: ``ckpt/`` in a folder, base models beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "[INST] {{ m['content'] }} [/INST]{% endfor %}"
)
SHAPE = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def write_base(
    folder: Path,
    kind: str = "mistral",
    *,
    width: int = 32,
    rows: int | None = None,
    chat: str = CHAT,
    padding_side: str = "left",
    generation: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a base model and its tokenizer of bytes with BOS and EOS."""
    tokenizer = write_tokenizer(folder, chat, padding_side)
    sizes = SHAPE | {"hidden_size": width, "vocab_size": rows or len(tokenizer)}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | ids | config)).to(dtype)
    model.save_pretrained(folder)
    settings = {"eos_token_id": tokenizer.eos_token_id} | (generation or {})
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def write_tokenizer(folder: Path, chat: str = CHAT, padding_side: str = "left") -> PreTrainedTokenizerFast:
    """Write a tokenizer with one token per byte, which puts BOS before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", padding_side=padding_side
    )
    backend = tokenizer.backend_tokenizer
    special = [("<s>", tokenizer.bos_token_id)]
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", special_tokens=special)
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_cocom(
    folder: Path,
    *,
    length: int = 16,
    rate: int = 4,
    rank: int = 2,
    different: bool = True,
    kbtc: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    base: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of family "cocom" and its base, and return the checkpoint's folder."""
    out, decoder = folder / "ckpt", write_base(folder / "base_decoder", **{"seed": seed} | (base or {}))
    out.mkdir()
    config = _cocom_config(length, rate, rank, different_mem_tokens=different, kbtc_training=kbtc)
    (out / "config.json").write_text(json.dumps(config))
    memory = length // rate if different else 1
    _write_decoder(out, decoder, memory + 3 + kbtc, rank, ("decoder_adapter", "encoder_adapter"), dtype, seed)
    return out


def write_oscar(
    folder: Path,
    *,
    trimmed: bool = False,
    lora: bool = False,
    mlp: bool = True,
    norm: bool = False,
    layers: int | None = 2,
    every: int | None = None,
    length: int = 16,
    rate: int = 4,
    rank: int = 2,
    seed: int = 0,
    base: dict[str, Any] | None = None,
    compressor: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of family "oscar" and its bases, and return the checkpoint's folder."""
    out, decoder = folder / "ckpt", write_base(folder / "base_decoder", **{"seed": seed} | (base or {}))
    width = 24 if mlp else 32
    own = write_base(folder / "base_compressor", **{"kind": "llama", "width": width, "seed": 7} | (compressor or {}))
    (out / "compressor").mkdir(parents=True)
    config = _cocom_config(
        length,
        rate,
        rank,
        compr_model_name="mistral_trimmed" if trimmed else own.name,
        compr_base_model_name=own.name if trimmed else "never/asked-for",
        compr_n_layers=layers if trimmed and not every else None,
        compr_every_n_layer=every if trimmed else None,
        compr_rms_norm=norm,
        compr_use_mlp=mlp,
        compr_mlp_hidden_dim=40,
        lora_compressor=lora,
        lora_r_compressor=rank,
    )
    (out / "config.json").write_text(json.dumps(config))
    n_mem = length // rate
    _write_decoder(out, decoder, n_mem + 3, rank, ("decoder_adapter",), torch.bfloat16, seed)
    state = load_file(own / "model.safetensors")
    total = json.loads((own / "config.json").read_text())["num_hidden_layers"]
    kept = list(range(total))
    if trimmed:
        kept = [every * i for i in range(total // every)] if every else list(range(layers or 0))
    _write_compressor(out / "compressor", own, state, kept, n_mem, rank, trimmed=trimmed, lora=lora, norm=norm)
    if mlp:
        first, second = nn.Linear(width, 40), nn.Linear(40, _width(decoder))
        tensors = {"0.weight": first.weight, "0.bias": first.bias, "2.weight": second.weight, "2.bias": second.bias}
        torch.save({n: t.detach().to(torch.bfloat16) for n, t in tensors.items()}, out / "compressor" / "mlp.pth")
    return out


def write_cocom_v1(
    folder: Path,
    *,
    rate: int = 16,
    sep: bool = True,
    light: bool = False,
    rank: int = 2,
    shards: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    base: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of family "cocom-v1" and its bases, and return the checkpoint's folder."""
    out, decoder = folder / "ckpt", write_base(folder / "base_decoder", **{"seed": seed} | (base or {}))
    out.mkdir()
    config = {
        "model_type": "COCOM",
        "decoder_model_name": decoder.name,
        "compr_rate": rate,
        "compr_model_name": "base_compressor" if light else None,
        "compr_linear_type": "concat",
        "sep": sep,
        "lora": True,
        "lora_r": rank,
    }
    (out / "config.json").write_text(json.dumps(config))
    state, pairs = _enlarged(load_file(decoder / "model.safetensors"), 4, seed), {}
    for name in linears(state):
        pairs |= {f"{name}.{kind}.default.weight": t for kind, t in pair(state[f"{name}.weight"], rank, seed).items()}
        state[f"{name}.base_layer.weight"] = state.pop(f"{name}.weight")
        if f"{name}.bias" in state:
            state[f"{name}.base_layer.bias"] = state.pop(f"{name}.bias")
    state = {f"decoder.base_model.model.{name}": tensor for name, tensor in (state | pairs).items()}
    if light:
        state |= _light_compressor(folder / "base_compressor", rate, _width(decoder))
    save_shards(out, {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}, shards)
    return out


def save_shards(folder: Path, state: dict[str, torch.Tensor], shards: int = 1, *, pickled: bool = False) -> None:
    """Write weights as safetensors or as ``pytorch_model.bin``, whole or in shards with an index."""
    save = torch.save if pickled else save_file
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    if shards == 1:
        save(state, folder / f"{stem}.{suffix}")
        return
    names = sorted(state)
    places = {name: f"{stem}-{1 + i % shards:05d}-of-{shards:05d}.{suffix}" for i, name in enumerate(names)}
    for place in sorted(set(places.values())):
        save({name: state[name] for name in names if places[name] == place}, folder / place)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def edit_pth(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the dictionary in a ``.pth`` file; a function that returns another dictionary replaces it."""
    state = torch.load(path, weights_only=True)
    torch.save(change(state) or state, path)


def linears(state: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the linear layers that are adapted."""
    return [name.removesuffix(".weight") for name in state if name.endswith("_proj.weight")]


def pair(weight: torch.Tensor, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Return a LoRA pair for a weight."""
    generator = torch.Generator().manual_seed(seed + weight.numel())
    down, up = (
        torch.randn(rank, weight.shape[1], generator=generator),
        torch.randn(weight.shape[0], rank, generator=generator),
    )
    return {"lora_A": (down * 0.1).to(weight.dtype), "lora_B": (up * 0.1).to(weight.dtype)}


def _cocom_config(length: int, rate: int, rank: int, **others: Any) -> dict[str, Any]:
    return {
        "model_type": "COCOM",
        "auto_map": {"AutoModel": "modelling_pisco.COCOM"},
        "attn_implementation": "flash_attention_2",
        "decoder_model_name": "base_decoder",
        "doc_max_length": length,
        "compr_rate": rate,
        "sep": True,
        "lora": True,
        "lora_r": rank,
        "different_mem_tokens": True,
        "compr_model_name": None,
        "compr_base_model_name": "never/asked-for",
        "training_form": "both_separately",
        **others,
    }


def _write_decoder(
    out: Path, base: Path, added: int, rank: int, roles: tuple[str, ...], dtype: torch.dtype, seed: int
) -> None:
    state = load_file(base / "model.safetensors")
    tables = {n: t.to(dtype) for n, t in _enlarged(state, added, seed).items() if "embed" in n or "lm_head" in n}
    torch.save(tables, out / "decoder_first_last_layers.pth")
    adapters = {}
    for place, role in enumerate(roles):
        adapters[role] = {
            f"{name}.{kind}.weight": tensor.to(dtype)
            for name in linears(state)
            for kind, tensor in pair(state[f"{name}.weight"], rank, seed + 100 * place).items()
        }
    torch.save(adapters, out / "adapters.pth")


def _write_compressor(
    out: Path,
    base: Path,
    state: dict[str, torch.Tensor],
    kept: list[int],
    added: int,
    rank: int,
    *,
    trimmed: bool,
    lora: bool,
    norm: bool,
) -> None:
    prefix = "custom_model.model." if trimmed else ""
    state = {name.removeprefix("model."): tensor for name, tensor in _enlarged(state, added, 5).items()}
    head = state.pop("lm_head.weight", state["embed_tokens.weight"])
    own = {name: tensor for name, tensor in state.items() if not name.startswith("layers.")}
    for new, old in enumerate(kept):
        for name, tensor in state.items():
            if name.startswith(f"layers.{old}."):
                own[name.replace(f"layers.{old}.", f"layers.{new}.")] = tensor * 1.25
    if trimmed and not norm:
        del own["norm.weight"]
    if not lora:
        tensors = {prefix + name: tensor.contiguous() for name, tensor in own.items()}
        torch.save(tensors | ({"custom_model.lm_head.weight": head} if trimmed else {}), out / "compressor.pth")
        return
    torch.save({f"{prefix}embed_tokens.weight": own["embed_tokens.weight"]}, out / "first_layer.pth")
    pairs = {
        f"{'model.' if trimmed else ''}{name}.{kind}.weight": tensor
        for name in linears(own)
        for kind, tensor in pair(own[f"{name}.weight"], rank, 3).items()
    }
    torch.save(pairs, out / "compressor_adapters.pth")


def _light_compressor(folder: Path, rate: int, width: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *map(chr, range(33, 127)),
        *(f"##{chr(i)}" for i in range(33, 127)),
    ]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(11)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=160,
        initializer_range=0.2,
    )
    config.save_pretrained(folder)
    linear = nn.Linear(16 * rate, width)
    state = {f"compr.model.{name}": tensor for name, tensor in BertModel(config).named_parameters()}
    state |= {"compr.linear.weight": linear.weight, "compr.linear.bias": linear.bias}
    return {name: tensor.detach() for name, tensor in state.items()}


def _enlarged(state: dict[str, torch.Tensor], added: int, seed: int) -> dict[str, torch.Tensor]:
    """Return weights whose tables have exactly the tokenizer's rows and random ones for added tokens."""
    generator = torch.Generator().manual_seed(seed)
    result = dict(state)
    for name in [name for name in state if "embed_tokens" in name or "lm_head" in name]:
        # The tokenizer has 256 bytes, BOS and EOS; a base's table may be padded beyond them.
        new = torch.randn(added, state[name].shape[1], generator=generator) * 0.2
        result[name] = torch.cat([state[name][:258], new.to(state[name].dtype)])
    return result


def _width(base: Path) -> int:
    return json.loads((base / "config.json").read_text())["hidden_size"]
