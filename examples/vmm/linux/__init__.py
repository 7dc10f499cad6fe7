"""A machine that boots Linux: what Debian's kernel wants of a PC, and nothing else."""
