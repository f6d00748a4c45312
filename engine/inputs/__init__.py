"""Inputs: documents, records, tables, images and questions, read one at a time from any of their formats.

`corpus` reads documents from files and `memory_corpus` from Python objects; `documents` defines them, `records` makes them of
rows. `filetypes` lists the formats; `textfiles`, `csvfiles` and `tables` read them, with `class_labels`, `token_records` and
`value_names` for values. `images` finds documents of images (`image_files`, `image_tables`), `questions` multiple-choice
questions.
"""
