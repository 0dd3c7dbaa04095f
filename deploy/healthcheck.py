"""Exit 0 when this container's service answers /healthz; for HEALTHCHECK, since a slim image has no curl."""

import http.client
import os
import ssl

port = int(os.environ.get("PLAUDIT_PORT") or 8000)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
if os.environ.get("PLAUDIT_TLS_CERTIFICATE_FILE"):
    # The certificate names the service's host, not this address, on which nobody else answers.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=4, context=context)
connection.request("GET", "/healthz")
raise SystemExit(connection.getresponse().status != 200)
