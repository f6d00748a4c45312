"""Selectivity: neurons that fire for one label only (LAPE, DAPE), and what switching them off does."""
