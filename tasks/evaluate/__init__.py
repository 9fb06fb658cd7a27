"""Measure one model on the test split."""
