"""Models in memory and on disk, and the constraints that their compressed weights satisfy."""
