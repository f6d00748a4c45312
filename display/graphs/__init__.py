"""Drawings of neuron graphs: as a tree in the terminal, and as SVG, HTML, DOT or PNG.

`branches` makes the one tree that all formats draw; `terminal`, `svg`, `html` and `draw` write it, with the words of
`branch_numbers` and `labels`. `views` is what the methods of a graph open (`graph.draw()`, `graph.similar()`):

>>> graph = actstore.open("gpt2.actstore").graph("L3.N17")
>>> graph.draw(paths=8).save("l3n17.svg")
"""
