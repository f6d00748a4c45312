"""NA-ICA, published as QRNCA: which neurons are relevant to a query and not to every other query as well.

Chen, Dejl and Toni (AAAI 2025, arXiv 2406.10868). A neuron's score for a query is na · ica: `na` is its attribution, summed
over the query's prompts and divided by the sum over all neurons, and `ica = log(|C| / (df + 1))` is its inverse cluster
attribution, with |C| clusters of which df contain the neuron. Neurons in more than the share u of the clusters are removed as
common; of the others the v with the largest score are selected. `methods` is the table of selection methods, NA-ICA and its
baselines; `evaluation` measures what suppressing and boosting the selected neurons does; `knowledge` finds knowledge neurons
(Dai et al. 2022, arXiv 2104.08696).

>>> from actstore.engine.naica.naica import find_naica
>>> from actstore.store.capture.questions.attributions import open_attributions
>>> attributions = open_attributions(actstore.open("facts.actstore"))
>>> neurons, scores = find_naica(attributions).of(0)
>>> attributions.neuron_names(neurons)
"""
