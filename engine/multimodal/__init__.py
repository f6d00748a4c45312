"""Multi-modal neurons: which neurons carry what is on an image into the words of its caption, and where on it they look.

Pan et al. (Findings of ACL 2024, arXiv 2311.07470). At the position that predicts a noun's first sub-token, a neuron with
activation a and write vector w has the score `s = a · (w · (γ ⊙ u))` for the noun's unembedding row u: its direct term in the
noun's logit. `find.find_multimodal` ranks all neurons of the language model for each noun, from a store alone; `concepts` puts
captions together, `noun_maps` maps activations onto the image, `properties` and `shuffle` measure sensitivity, invariance and
specificity; `gradients` (a baseline) and `causal` (noise on the write vectors) need the model.

    >>> capture = actstore.open("captions.actstore").capture()
    >>> result = find_multimodal(capture, FindSettings(k=5))
    >>> [(noun.word, result.neurons_of(i)[0]) for i, noun in enumerate(result.nouns)]
    [('circle', (2, 17)), ('square', (3, 4))]
"""
