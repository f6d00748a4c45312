"""Probes: activations of a model on windows that a capture does not have, as evidence for graphs.

They answer which context tokens cause an activation, and what neurons do in further contexts, after Neuron to Graph (N2G, Foote
et al. 2023, arXiv 2305.19911). Exemplars of each neuron are shortened, then their tokens are masked and substituted; the
importance of a token is `1 − a(masked) / a`, where a is the activation at the pivot, the token of the largest activation.
`rounds.probe` runs the rounds, and the results are captures of the store:

>>> from actstore.engine.graphs.probes.rounds import probe
>>> probes = probe("gpt2", "gpt2.actstore", neurons=[(3, 17)])
>>> probes.of(3, 17)[0].importance

- A round: `questions` says what is requested of a neuron, `plan` has the settings, masks and requests, `corpus_substitutes` and
  `substitutes` predict other tokens, `rounds` plans and runs one round after another.
- Running: `run` captures given windows, planned by `window_plan`; `prefixes` runs each shared prefix once, token by token with
  `stepping`.
- Sampled text: `sampled.sample_probes` captures windows that `sampling` draws from the model.
- Results: `evidence` reads probes and adds importance to graphs, `published` builds the published graphs from them.
"""
