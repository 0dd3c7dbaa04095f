"""What computes a batch, and outcomes for each of its sequences. Knows no queues or HTTP."""
