"""Lossless compression by a trained model: bits-back coding, its file, and what other formats take."""
