"""Items to token ids, equal to what the trainer had. Knows no batches, engines or HTTP."""
