"""Names of files in a prepared dataset, by which a listing knows one (data/dataset.py reads it)."""

import re

INDEX = "dataset.json"
IMAGE = re.compile(r"images/[0-9a-f]{2}/[0-9a-f]{64}")
