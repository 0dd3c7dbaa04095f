"""The metrics of the service as a Prometheus server finds them."""

from plaudit_service.metrics import Metrics


def service_metrics():
    """{name: counter, gauge or histogram}; a counter's name ends with `_total`."""
    families = [family for family in Metrics().registry.collect() if family.name.startswith("plaudit_")]
    return {family.name + "_total" * (family.type == "counter"): family.type for family in families}
