"""Who runs trials, and the trial itself."""
