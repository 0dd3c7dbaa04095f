"""The path of a request from items to results, in process and in the service, and the service's life. Knows no HTTP."""
