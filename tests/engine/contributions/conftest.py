"""Planted stores."""

from planted_store_fixtures import planting, somewhere

__all__ = ["planting", "somewhere"]
