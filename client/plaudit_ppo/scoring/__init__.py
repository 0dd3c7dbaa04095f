"""Scores for rollouts, from wherever they come. Knows no training."""
