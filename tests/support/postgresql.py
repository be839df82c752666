"""What the tests know of the PostgreSQL server that they start."""

#: Also proves that no message prints it.
PASSWORD = "s3cret-pass"
