"""The forms of a rewrite, one module each: which neurons are rewritten, and the rows that they get.

`table` lists them. `least_norm` solves normal equations (`least_norm_problem`) over what a store says about each position
(`stream`); `learned` draws examples and learns from them (`fine`); `knowledge` adds word embeddings.
"""
