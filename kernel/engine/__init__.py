"""All images: what a kernel takes, in which passes it is computed, and where."""
