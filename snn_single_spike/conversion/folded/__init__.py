"""A converted model: its modules, with time folded into the batch, and one call of it."""
