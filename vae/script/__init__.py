"""A recipe as a script of its own, which needs torch and numpy alone."""
