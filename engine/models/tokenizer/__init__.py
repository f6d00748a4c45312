"""Tokenizers: text to token ids and back, and the bytes that each token stands for.

`load` is the tokenizer that everything else uses. `special_tokens` says which ids stand for no text, `faults` why a tokenizer
can read none, and `fast_bytes` and `slow_bytes` give the bytes of each token, for the two kinds of tokenizers.
"""
