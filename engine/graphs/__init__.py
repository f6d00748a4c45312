"""Neuron graphs: on which tokens a neuron fires, and which tokens before them make it fire or keep it from firing.

The graph of a neuron is a tree of contexts, after Neuron to Graph (N2G, Foote et al. 2023, arXiv 2305.19911). A node is a token
and some tokens before it. Of n occurrences with the same next token before them, f of which fire, the node counts
`κ · n / (n + κ)` and `κ · f / (n + κ)`; with N and F the sums over all these tokens, and the prior p_parent of the shorter
context, `p = (F + κ · p_parent) / (N + κ)`. Where all occurrences fire, or none, N and F are their numbers. Further occurrences
are expected in the longest contexts as often as they were seen, and in unseen ones as often as contexts were seen once; a child
that adds more than `gain` nats to the log-likelihood expected of these becomes a node (`kernels.suffix_trie.naive`). The
published method builds from probes of the model instead.

`build.build_graphs` computes the graphs of all neurons from a capture, without a model, and writes them into its store:

>>> from actstore.engine.graphs.build import build_graphs
>>> from actstore.store.storage.folder import Folder
>>> capture = actstore.open("gpt2.actstore").capture()
>>> graphs = build_graphs(capture, Folder("gpt2.actstore", read_only=False), neurons=[(3, 17)])
>>> print(graphs.graph(3, 17).draw(paths=8))

- Building: `methods` is the table of methods, `selection` the neurons, `contexts` the sorted contexts of a capture, `values` a
  part of the value of a path; the trie itself is in `kernels.suffix_trie`.
- Evaluation: `evaluate` on the windows of `split`, with the `samples` of neurons, the baselines of `lookup` and the `scores`.
- Questions to finished graphs: `predict` on windows and texts, `search` with the tokens of `token_sets`, `similar` with the
  products of `sparse`, and `repeats`, which finds in-context neurons from activations alone.
- `probes` runs the model on windows that the capture does not have.
"""
