"""`actstore repair`: what `verify` finds damaged, made again from what is whole, or with the model."""
