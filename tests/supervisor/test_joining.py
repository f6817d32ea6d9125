"""What a data node says when it cannot join, or is asked where none runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from host_agent.wire.errors import HoldfastError
from tests.servers.datanode import DataNode, Deployment
from workers.cli.datanode import NodeAway, read_status
from workers.supervisor.command import BadSettings, NodeSettings, run_datanode
from workers.supervisor.identity import JoiningFailed, NotJoined, join, load_identity

TOKEN = f"hfn_{'0' * 26}_{'0' * 64}_{'0' * 64}"


@pytest.mark.parametrize(
    ("api", "token"),
    [
        ("https://127.0.0.1:9", "hfj_x"),
        ("https://127.0.0.1:9", TOKEN[:-1]),
        ("http://127.0.0.1:9", TOKEN),
        ("https://127.0.0.1:9", TOKEN),
    ],
)
def test_a_node_that_cannot_join_says_why_and_keeps_what_it_had(
    tmp_path: Path, api: str, token: str
) -> None:
    with pytest.raises(JoiningFailed) as failed:
        join(api, token, tmp_path / "node")
    assert failed.value.hint
    assert not (tmp_path / "node").exists()


def test_a_folder_without_an_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(NotJoined) as refused:
        load_identity(tmp_path)
    assert "join" in refused.value.hint
    settings = NodeSettings(tmp_path, ("127.0.0.1", 0), (("127.0.0.1", 9),))
    with pytest.raises(NotJoined):
        run_datanode(settings)


def test_a_second_node_in_the_same_folder_is_refused(deployment: Deployment) -> None:
    node = DataNode(deployment)
    try:
        assert load_identity(node.directory).renew_at > datetime.now(UTC)
        node.start()
        settings = NodeSettings(node.directory, ("127.0.0.1", 0), (("127.0.0.1", 9),))
        with pytest.raises(BadSettings):
            run_datanode(settings)
        assert node.status()["tenants"] == 0
    finally:
        node.clean()


def test_where_no_node_runs_status_says_so(tmp_path: Path) -> None:
    with pytest.raises(NodeAway) as away:
        read_status(tmp_path)
    assert isinstance(away.value, HoldfastError)
