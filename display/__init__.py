"""Everything that people look at: terminal tables, notebook views, pictures of graphs and of neurons. Nothing here computes."""
