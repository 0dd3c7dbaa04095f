"""What the demo measured, as figures and as a page."""
