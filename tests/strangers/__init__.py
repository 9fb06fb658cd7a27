"""Networks that other people trained, each written as a user would write it: `build(...)` returns the module.

The names of parameters are those of the files of weights, which lie in packages and never here.
"""
