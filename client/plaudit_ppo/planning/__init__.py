"""How much memory a run will take, before anything is loaded: the passes of an iteration on tensors without data."""
