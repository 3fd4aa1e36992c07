"""Pools: a validated card, a base, checkpoints of one architecture and the tasks that judge them."""
