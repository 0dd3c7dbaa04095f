"""Reward functions in the forms that trainers take. Thin: they translate items, and the client does the rest."""
