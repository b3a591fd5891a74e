"""What cannot be converted, and what is only warned about."""
