"""Errors a user can cause, told in one line: the rule, the value, the way out."""


class UserError(Exception):
    """Bad input: a wrong name, value, file or option. The command line exits with 2."""


class FailureError(UserError):
    """The input was fine and the work could not be done: a full disk, a lost server. Exits with 1."""
