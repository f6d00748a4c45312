"""The explorer in a notebook: a widget where anywidget is installed, and what a notebook shows of a store where it is not."""
