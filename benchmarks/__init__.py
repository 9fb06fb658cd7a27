"""Measurements of the project itself; each prints the table that the documents show."""
