"""Prefect flows that run the DAG of dvc.yaml; dvc.yaml stays the one place that describes it.

Settings of Prefect that must stand before it is imported are made here.
"""

import os

for _name, _value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server's switch
    "DO_NOT_TRACK": "1",  # and the client's
    # A server that starts with the flow needs half a minute where it is new; the default gives up after 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}.items():
    os.environ.setdefault(_name, _value)
