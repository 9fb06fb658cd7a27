"""The page report/index.html: all models, what they cost, and what became of each layer, in one file."""
