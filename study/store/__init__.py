"""All SQL: Optuna's storage and our tables in one database."""
