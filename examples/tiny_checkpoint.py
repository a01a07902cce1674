"""Train the small checkpoint of the demonstration, from two random models.

    make tiny-checkpoint
    python examples/tiny_checkpoint.py [FOLDER] [--rate 9]      (default: tiny-checkpoint/)

The data is Tinypedia's training split, and one seed determines all draws. After a stop, the same command resumes.
examples/tinypedia-checkpoint is a copy of FOLDER/tinypedia-exact without its folder training/.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pisco_index import finetune, new_checkpoint, pretrain
from pisco_index.configs import load_finetuning, load_pretraining
from pisco_index.training.tinypedia import (
    articles,
    conversations,
    recitals,
    short_conversations,
    write,
    write_conversations,
)

SEED = 0
# Memory first learns to hold a few words, then a passage.
PRETRAINING = ("tinypedia-words", "tinypedia-passages")
# The decoder learns to choose an article by its title from short articles, where there is little else to learn.
FINETUNING = {"tinypedia-titles": short_conversations, "tinypedia": conversations}
# Reciting whole articles makes memory exact. Short answers need only a small part of it.
LAST = {
    "tinypedia-recitals": recitals,
    "tinypedia-exact": lambda split, seed: recitals(split, seed=seed + 1, documents=(1, 2)),
}
# Rate of all stages before the last ones. What the decoder has learned by then is useful at any rate.
FIRST_RATE = 10
ARTICLES = 200_000
CONVERSATIONS = 60_000
VOCABULARY = 1024
WIDTH = 256
MLP_WIDTH = 512
# A decoder of three layers reads one article equally well, but does not learn to choose among several.
LAYERS = {"compressor": 3, "decoder": 5}
HEADS = 8
# Without a system turn, because a decoder this small does not follow instructions.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] + '\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Answer: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)


def main(folder: Path, rate: int) -> None:
    """Write the data and the untrained checkpoint, and train it. Finished steps are not repeated."""
    data, untrained = folder / "data", folder / "untrained"
    if not data.is_dir():
        unfinished = folder / "data.unfinished"
        write(unfinished, "train", count=ARTICLES, seed=SEED)
        for preset, drawn in (FINETUNING | LAST).items():
            write_conversations(unfinished / f"{preset}.jsonl", islice(drawn("train", seed=SEED), CONVERSATIONS))
        unfinished.rename(data)
    if not (untrained / "config.json").is_file():
        new_models(folder)
        new_checkpoint(
            untrained,
            folder / "compressor",
            folder / "decoder",
            rate=FIRST_RATE,
            mlp_dim=2 * WIDTH,
            lora_rank=2,
            seed=SEED,
        )
    checkpoint = untrained
    for preset in PRETRAINING:
        paths = {"checkpoint": str(checkpoint), "data": (str(data / "corpus.jsonl"),), "out": str(folder / preset)}
        checkpoint = pretrain(load_pretraining(preset, paths)).path
    checkpoint = at_rate(rate, finetuned(FINETUNING, checkpoint, folder), folder / f"rate-{rate}")
    finetuned(LAST, checkpoint, folder)


def finetuned(presets: Iterable[str], checkpoint: Path, folder: Path) -> Path:
    """Run stages of fine-tuning one after the other, each on its own data, and return the last checkpoint."""
    for preset in presets:
        data = (str(folder / "data" / f"{preset}.jsonl"),)
        paths = {"checkpoint": str(checkpoint), "data": data, "out": str(folder / preset)}
        checkpoint = finetune(load_finetuning(preset, paths)).path
    return checkpoint


def at_rate(rate: int, checkpoint: Path, out: Path) -> Path:
    """Copy a checkpoint with another rate, at which its training continues."""
    if not out.is_dir():
        draft = out.with_name(f"{out.name}.unfinished")
        shutil.copytree(checkpoint, draft, ignore=shutil.ignore_patterns("training"), dirs_exist_ok=True)
        config = json.loads((draft / "config.json").read_text("utf-8")) | {"compr_rate": rate}
        (draft / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        draft.rename(out)
    return out


def new_models(folder: Path) -> None:
    """Write two random models that share a tokenizer: the compressor and the decoder."""
    tokenizer = new_tokenizer()
    torch.manual_seed(SEED)
    for name, layers in LAYERS.items():
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=MLP_WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            head_dim=WIDTH // HEADS,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on Tinypedia. It cuts a name into the same tokens wherever the name stands."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    read = list(islice(articles("train", seed=SEED), 20_000))
    asked = [fact.question for article in read for fact in article.facts]
    prompts = ["Background: Document 0: Document 1: Question: Answer:\n"] * 2000
    backend.train_from_iterator([*(article.text for article in read), *asked, *prompts], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left")
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("tiny-checkpoint"))
    parser.add_argument(
        "--rate",
        type=int,
        default=9,
        help="rate of the final checkpoint, in source tokens per memory token",
    )
    arguments = parser.parse_args()
    main(arguments.folder, arguments.rate)
