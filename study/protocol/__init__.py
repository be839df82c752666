"""What runs next and what has won."""
