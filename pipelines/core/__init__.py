"""Shared by everything in `pipelines`: run directories, JSON, progress, errors."""
