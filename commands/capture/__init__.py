"""`actstore capture` and the report of its dry run."""
