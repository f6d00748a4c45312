"""Change: which neurons act differently in two models on the same tokens, and how much of the behaviour they cause.

Chen et al. (NeurIPS 2025, arXiv 2406.14144). The change score of a neuron is the root mean square difference of its
activations, `S(n) = sqrt(Σ (a_n(M₁) − a_n(M₂))² / count)`, over the positions of two captures of one plan. Dynamic activation
patching then generates text with M₁ while the activations of these neurons are those of M₂; the causal effect is
`C = E[F(patched) − F(M₁)] / E[F(M₂) − F(M₁)]` for a score F of the generations.

>>> from actstore.engine.change.change import change_scores
>>> base, tuned = actstore.open("base.actstore"), actstore.open("tuned.actstore")
>>> change = change_scores(base.capture("prompts"), tuned.capture("prompts"))
>>> change.names(change.top(0.05))
"""
