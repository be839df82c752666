"""What stopping early would have saved and cost: pruners and patience over recorded learning curves."""
