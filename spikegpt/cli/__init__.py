"""The command line: what each verb takes, and what it does."""
