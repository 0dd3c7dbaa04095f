"""Rollouts by an engine behind HTTP (vLLM): asked, given the policy's weights, and never believed. Knows no PPO."""
