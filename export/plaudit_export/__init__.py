"""Turns a reward-model checkpoint into a verified bundle."""
