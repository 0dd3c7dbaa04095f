"""The client SDK: sends items to a scoring service and returns a score or a typed failure for each."""
