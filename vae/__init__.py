"""Variational autoencoders: one recipe trained on one data set. Knows nothing of Optuna."""
