"""`actstore serve`: the explorer's pages over HTTP."""
