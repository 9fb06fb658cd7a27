"""Prefect flows that run the DAG of dvc.yaml; dvc.yaml stays the one place that describes it.

Settings of Prefect that must stand before it is imported are made here.
"""

import os

from flows import password

for _name, _value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # the server's switch
    "DO_NOT_TRACK": "1",  # and the client's
    # A server that starts with the flow needs half a minute where it is new; the default gives up after 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Nor may web pages write into it, for it has the database of `make serve`: by default all of them may.
    "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "http://127.0.0.1",
    "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
}.items():
    os.environ.setdefault(_name, _value)

if _password := password.known(os.environ.get("PREFECT_API_URL")):
    os.environ.setdefault("PREFECT_API_AUTH_STRING", _password)
