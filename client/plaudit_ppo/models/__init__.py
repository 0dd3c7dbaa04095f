"""Policy, critic and LoRA adapter: loaded, saved, and read whole where they are spread. Knows no training."""
