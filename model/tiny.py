"""Make a tiny random checkpoint, to try a pipeline without downloading a model."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .create import new_checkpoint, save_model, seeded
from .families.pisco import PiscoCheckpoint

_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL_TOKENS: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
# Hidden width of each base model, by the name of its folder in the checkpoint.
_WIDTHS = {"base_compressor": 64, "base_decoder": 96}


def new_tiny_checkpoint(out: str | Path, *, rate: int = 16, seed: int = 0) -> PiscoCheckpoint:
    """Make a tiny random checkpoint (under 3 MB) with its two base models inside the folder.

    It shows that a pipeline works; its answers mean nothing.

    Args:
        out: a folder that does not exist or is empty.
        rate: number of source tokens per memory token.
        seed: seed of the random weights.

    Raises:
        CheckpointError: the folder already holds something.
    """
    tokenizer = _tiny_tokenizer()
    with TemporaryDirectory() as scratch, seeded(seed):
        for name, width in _WIDTHS.items():
            model: Any = Qwen3ForCausalLM(_tiny_config(width, len(tokenizer), tokenizer))
            save_model(model.to(torch.bfloat16), Path(scratch) / name)
            tokenizer.save_pretrained(Path(scratch) / name)
        compressor, decoder = (Path(scratch) / name for name in _WIDTHS)
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
    return PiscoCheckpoint(out)


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
    """Return a byte-level BPE tokenizer with merges for the most common English words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=1, show_progress=False
    )
    backend.train_from_iterator([f" {word}" for word in _COMMON_WORDS.split()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **_SPECIAL_TOKENS)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


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
