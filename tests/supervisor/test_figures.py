"""What a data node tells of itself at its health door."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from infra.demo.processes import free_port
from tests.servers.datanode import DataNode, Deployment
from tests.supervisor.test_alone import replicates


def test_a_node_is_ready_and_its_figures_move(deployment: Deployment, tmp_path: Path) -> None:
    tenant, port = deployment.tenant(), free_port()
    node = DataNode(deployment)

    def asked(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return str(answer.read().decode())

    def figure(name: str) -> float:
        lines = asked("/metrics").splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    try:
        node.keep(tenant)
        node.start({"HOLDFAST_DATANODE_HEALTH_LISTEN": f"127.0.0.1:{port}"})
        node.wait_for(lambda: node.status()["router"].get("state") == "ready", "no router")
        assert asked("/ready") == '{"ready": true}'
        assert figure("holdfast_datanode_tenants") == 1
        replicates(node, tenant, tmp_path, "counted")
        node.wait_for(
            lambda: figure("holdfast_datanode_stream_bytes_stored_total") > 0, "nothing is counted"
        )
        assert 'holdfast_datanode_tenants_by_wall{wall="folder"} 1.0' in asked("/metrics")
        assert tenant.id not in asked("/metrics"), "no tenant is named"
    finally:
        node.clean()
