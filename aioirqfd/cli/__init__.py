"""The command line: ``python -m aioirqfd``."""
