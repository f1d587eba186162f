"""The command line: one command a file, one answer a command."""
