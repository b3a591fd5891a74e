"""What the documentation site computes from the pages and from the package."""
