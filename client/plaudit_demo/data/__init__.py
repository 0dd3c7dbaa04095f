"""What the demo is about: its texts, the gold reward that stands for people, samples and preference pairs."""
