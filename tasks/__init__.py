"""The stages of the pipeline, one folder each: they read files, call the library `decant` and write files."""
