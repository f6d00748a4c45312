"""The store: format 1 on disk, its writers and readers."""
