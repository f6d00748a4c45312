"""Copies of stores, from one location to another: what is to be copied, in which order, and what each file is held against."""
