"""Batches: the tokens of a capture in any order, to train on. Needs no torch unless tensors are asked for."""
