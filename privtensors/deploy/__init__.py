"""Parties on the network: a client, a server and a dealer, each a process of its own, from one policy file."""

from __future__ import annotations

from privtensors.deploy.client import RemoteModel, RequestCost, connect
from privtensors.deploy.config import Deployment, ServiceLimits

__all__ = ["Deployment", "RemoteModel", "RequestCost", "ServiceLimits", "connect"]
