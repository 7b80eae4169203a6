"""Where a node keeps its things; each path of the agent, shim and resolver is spelled here once."""

from __future__ import annotations

from attrs import frozen


@frozen
class NodePaths:
    """`state` survives reboots (0700), `run` does not."""

    state: str = "/var/lib/orchestra"
    run: str = "/run/orchestra"

    @property
    def agent_socket(self) -> str:
        return f"{self.run}/agent.sock"

    @property
    def controller_socket(self) -> str:
        """Where the cluster's controller listens, on the node that is its home."""
        return f"{self.run}/controller.sock"

    @property
    def shim_socket(self) -> str:
        return f"{self.run}/shim.sock"

    @property
    def keeper_socket(self) -> str:
        """Where the second holder of the shim's descriptors listens."""
        return f"{self.run}/keeper.sock"

    @property
    def names(self) -> str:
        """The resolver's table, replaced by rename."""
        return f"{self.run}/names.json"

    @property
    def database(self) -> str:
        return f"{self.state}/agent.db"

    @property
    def assignment(self) -> str:
        return f"{self.state}/assignment.json"

    @property
    def identity(self) -> str:
        """JSON of the node's random id and its name; written at `node add`."""
        return f"{self.state}/node.json"

    @property
    def images(self) -> str:
        """Root of the image store (blobs/, layers/, ...)."""
        return f"{self.state}/images"

    @property
    def volumes(self) -> str:
        return f"{self.state}/volumes"

    def container(self, container_id: str) -> str:
        return f"{self.state}/containers/{container_id}"

    def container_run(self, container_id: str) -> str:
        return f"{self.run}/containers/{container_id}"
