"""Explain a model's answers, and compare its reasons with the teacher's."""
