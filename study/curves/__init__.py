"""Learning curves from anywhere as one record: our own database, files, and what trackers keep."""
