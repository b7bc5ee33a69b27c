"""Public datasets, and a hospital's own tables, as rows of a prepared dataset."""
