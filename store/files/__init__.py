"""Files of a store: JSON records, Parquet tables, Zarr arrays and shards, checksums."""
