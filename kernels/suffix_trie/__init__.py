"""Suffix trie: which contexts of a corpus make a neuron fire, as a small trie read backwards from a position."""
