"""One experiment's answer, computed once."""
