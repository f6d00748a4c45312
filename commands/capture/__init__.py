"""`actstore capture` and what its dry run says."""
