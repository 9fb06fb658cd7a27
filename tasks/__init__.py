"""The operations of the pipeline, one folder each, and what they share: plain PyTorch, no Prefect, no DVC."""
