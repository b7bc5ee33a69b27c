"""Finetuning: recipes, objective, engines, the loop around them, and checkpoints."""
