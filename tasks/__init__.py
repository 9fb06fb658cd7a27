"""The stages of the pipeline, one folder each: they read files, call the library `decant` and write files."""

from tasks.pipeline.environment import explain_missing_packages
from tasks.pipeline.openmp import spin_briefly

explain_missing_packages()
spin_briefly()
