"""Prompts, completions that are sampled for them, and what a network says about both. Knows no scores."""
