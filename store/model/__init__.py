"""A store's model: root record, weights, tokenizer, top tokens."""
