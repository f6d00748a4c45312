"""Inputs: documents, records, tables, images and questions, read one at a time from any of their formats."""
