"""NA-ICA, published as QRNCA (arXiv 2406.10868): query-relevant neurons, their evaluation, knowledge neurons."""
