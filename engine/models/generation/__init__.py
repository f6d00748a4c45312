"""Generation of text: token by token, from several prompts at once, greedily or sampled."""
