"""Pictures of neuron graphs: as text, SVG, HTML and PNG."""
