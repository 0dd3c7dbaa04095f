"""Exit 0 when this container's service answers /healthz; for HEALTHCHECK, since a slim image has no curl."""

import os
import ssl
import urllib.request

scheme = "https" if os.environ.get("PLAUDIT_TLS_CERTIFICATE_FILE") else "http"
url = f"{scheme}://127.0.0.1:{os.environ.get('PLAUDIT_PORT') or 8000}/healthz"
# The certificate names the service's host, not this address, which nobody else can answer on.
context = ssl._create_unverified_context() if scheme == "https" else None
with urllib.request.urlopen(url, timeout=4, context=context) as answer:  # any other status than 2xx raises
    answer.read()
