"""Exit 0 when this container's service answers /healthz, or the path given; for HEALTHCHECK, without curl."""

import http.client
import os
import ssl
import sys

port = int(os.environ.get("PLAUDIT_PORT") or 8000)
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
if os.environ.get("PLAUDIT_TLS_CERTIFICATE_FILE"):
    # The certificate names the service's host, not this address, on which nobody else answers.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=4, context=context)
try:
    connection.request("GET", sys.argv[1] if len(sys.argv) > 1 else "/healthz")
    status = connection.getresponse().status
except OSError as error:
    raise SystemExit(f"{connection.host}:{port}: {error}") from error
raise SystemExit(0 if status == 200 else f"{connection.host}:{port}: HTTP {status}")
