"""The command line: the only parsing, printing and exit codes."""
