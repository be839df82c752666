"""Finished trials written to an experiment tracker (MLflow, TensorBoard, Weights & Biases) from the database."""
