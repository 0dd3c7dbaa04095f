"""The scoring service: loads verified bundles and answers `POST /score`, batched."""
