"""Models: Hugging Face transformers opened, understood by structure, watched and intervened in.

`load` opens a model by name or from memory (`checkpoints`, `in_memory`, `sources`; `adapters` and `quantised` refuse what would
not run as its weights say; `families` knows the library's classes, `fingerprint` the record in a store). `architecture` finds
its neurons in one run without weights (`provenance`, `residual`), and `layers` numbers them. `watch` runs it and reads its
sites (`names` lists them, `sites` reads at hooks, `products` where no module is called). `patching` and `intervene` replace
activations, `generate` makes answers, `cache` handles keys and values. `tokenizer` and `vision` prepare texts and images.
"""
