"""Prefect flows: run, watch and compare what dvc.yaml describes; they know the dvc command, never torch."""
