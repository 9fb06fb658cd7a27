"""Measure what compression did to a model beside its accuracy: corruptions, flips, chance, weights."""
