"""What is compared; knows no database."""
