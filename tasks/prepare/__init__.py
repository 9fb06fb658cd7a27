"""Turn a source of labelled images into tables for training, validation and testing."""
