"""Multi-modal neurons (Pan et al., Findings of ACL 2024, arXiv 2311.07470): which neurons carry an image's concepts into words.

`nouns` and `captions` find the words of the answers and the positions that predict them, `find` ranks neurons, `concepts`
puts captions together, `patch_maps` and `pictures` show where on the image neurons look: from a store alone. `properties`
and `shuffle` test what such neurons are said to be; `gradients` and `causal` need the model for it.
"""
