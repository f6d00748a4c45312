"""Writing: what stands between the output of a feed-forward's projection and the residual stream that it is added to."""
