"""optuna-dashboard with this study's notes, plots and images."""
