"""The first calls of a converted model, compared with the author's model."""
