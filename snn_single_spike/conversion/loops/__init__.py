"""Loops over time in a forward: found, rewritten, and run once for all steps."""
