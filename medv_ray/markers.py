"""Numbers that stand where no token id does, in ids and in labels."""

IMAGE_SLOT = -200
"""In token ids: an image goes here; it is never embedded. LLaDA-V's number."""
IGNORE = -100
"""In labels: the position is no target; it is never masked and never in the loss."""
