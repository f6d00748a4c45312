"""Selectivity: which neurons fire for the tokens of one label only, and what switching them off does.

LAPE (Tang et al., ACL 2024, section 2.2): `p[label]` is the share of a label's tokens on which a neuron fires,
`p′ = p / Σ_labels p`, and the score is the entropy `−Σ p′ ln p′`; the neurons of lowest entropy whose `p` exceeds a threshold
for some label are selected. DAPE (Huo et al., EMNLP 2024) is the same measure with domains for labels, on the tokens of a
multimodal model. `selectivity` computes both from a capture, `mask_matrix` runs the model with the neurons off, `logit_lens`
gives the entropy of the next-token distribution of each layer.

>>> from actstore.engine.selectivity.selectivity import SelectivitySettings, find_selectivity
>>> selectivity = find_selectivity(actstore.open("gpt2.actstore").capture(), SelectivitySettings(by="language"))
>>> selectivity.firing.names(selectivity.neurons["fr"])
"""
