"""Read models, tokenizers and tensors from folders of unknown origin: no code from them runs, every size is checked."""
