"""What a decoder does with prompts: greedy decoding over a cache of keys and values, and its sensitivity to memory."""
