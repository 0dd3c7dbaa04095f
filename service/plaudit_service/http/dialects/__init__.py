"""What other trainers send and must get, each on a route of its own; off unless named. See docs/trainers/."""
