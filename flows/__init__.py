"""Prefect flows: they run, watch and compare what dvc.yaml describes, through the dvc command, without torch."""
