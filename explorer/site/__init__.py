"""`actstore site`: the explorer as a folder of files, for any host and for pages that are opened from a disk."""
