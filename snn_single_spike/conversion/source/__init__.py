"""Reads the source of the user's classes."""
