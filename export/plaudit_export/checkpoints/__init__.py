"""What a checkpoint on disk is, and the rules by which it scores text. Knows no graphs."""
