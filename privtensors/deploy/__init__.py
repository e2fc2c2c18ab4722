"""Parties on the network: a client, a server and a dealer, each a process of its own, from one policy file."""

from __future__ import annotations

from privtensors.deploy.client import RemoteModel, connect
from privtensors.deploy.config import Deployment, ServiceLimits
from privtensors.deploy.line import Prepared, RequestCost

__all__ = ["Deployment", "Prepared", "RemoteModel", "RequestCost", "ServiceLimits", "connect"]
