"""When a trial ends."""
