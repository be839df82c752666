"""One optimizer step, made fast."""
