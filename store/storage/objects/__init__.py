"""Stores on object stores and HTTP servers, by obstore."""
