"""What stages share: params.yaml, the splits, models/, the command line, records of code."""
