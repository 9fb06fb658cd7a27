"""Train the network that every compressed model descends from."""
