"""Batch files: uploaded, answered line by line, kept for a while."""
