"""Compare all models: a table, a picture, and data for `dvc plots`."""
