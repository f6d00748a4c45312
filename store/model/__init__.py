"""What a store keeps of its model: root record, weights, tokenizer."""
