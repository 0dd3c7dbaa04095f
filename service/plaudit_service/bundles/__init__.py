"""What a bundle is: manifest, fingerprint, verified loading, and where it comes from.

Knows no tokens, engines or HTTP.
"""
