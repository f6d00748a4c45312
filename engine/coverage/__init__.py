"""Coverage: how much of what its neurons can do a corpus made a model do, and whether a linear probe separates two labels.

Coverage criteria are those of DeepXplore, DeepGauge and TensorFuzz as Zhou et al. (ICSE 2025, arXiv 2408.15207) study them on
language models: for example, NC counts the neurons whose value, min-max scaled within the layer per sample, ever exceeds t.
`criteria.CRITERIA` is the table of them; `measure` reads the samples of a capture, `coverage` holds and merges states, `files`
writes them. `probe` fits logistic regression on the activations of the last token, the detector of the same paper.

>>> from actstore.engine.coverage.criteria import CoverageSettings
>>> from actstore.engine.coverage.measure import measure_coverage
>>> capture = actstore.open("gpt2.actstore").capture("prompts")
>>> for result in measure_coverage(capture, CoverageSettings(("nc", "tknc")))[""].results():
...     print(result.criterion, result.parameter, result.share)
"""
