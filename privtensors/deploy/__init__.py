"""Parties on the network: a client, a server and a dealer, each a process of its own, from one policy file; and keyed models over HTTP."""

from __future__ import annotations

from privtensors.deploy.client import RemoteModel, connect
from privtensors.deploy.config import Deployment, ServiceLimits
from privtensors.deploy.keyed_client import KeyedClient
from privtensors.deploy.keyed_requests import KeyedLimits
from privtensors.deploy.keyed_server import KeyedServer
from privtensors.deploy.line import Prepared, RequestCost

__all__ = ["Deployment", "KeyedClient", "KeyedLimits", "KeyedServer", "Prepared", "RemoteModel", "RequestCost", "ServiceLimits", "connect"]
