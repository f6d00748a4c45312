"""Attribution: which neurons does the probability of a predicted token depend on.

Integrated gradients along the path from 0 to a layer's activations ā, `na(n) = (ā_n / m) · Σ_{k=1..m} ∂P((k/m)·ā) / ∂a_n`
(Sundararajan et al. 2017, arXiv 1703.01365, eq. 3; Dai et al. 2022, arXiv 2104.08696, eq. 2; Chen et al. 2025, arXiv
2406.10868), at the last position of every prompt of a questions file. `attribute` stores them as a capture, beside the
activations and gradients; `integrated_gradients` computes one prompt; `scaled_last_position` predicts with neurons scaled.

>>> attributions = actstore.attribute("gpt2", "questions.json", "gpt2.actstore", steps=20)
>>> for rows, scores in attributions.query_scores("ig"):
...     print(scores.shape)  # [query, neuron]
"""
