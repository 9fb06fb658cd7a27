"""Check the whole of params.yaml before anything runs."""
