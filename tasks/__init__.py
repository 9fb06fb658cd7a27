"""The stages of the pipeline, one folder each: they read files, call the library `decant` and write files."""

from tasks.pipeline.environment import end_at_once, explain_missing_packages
from tasks.pipeline.openmp import spin_briefly

explain_missing_packages()
end_at_once()
spin_briefly()
