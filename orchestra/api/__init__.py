"""The HTTP routes: Docker Engine API, node protocol, controller; and their clients."""
