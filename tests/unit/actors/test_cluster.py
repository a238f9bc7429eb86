import socket

import pytest

from rlkl.actors.cluster import connect
from rlkl.errors import EnvironmentProblem
from rlkl.recipe import ClusterSection


def test_an_address_where_nothing_listens_is_refused():
    with socket.socket() as held:  # bound but not listening: nobody else gets the port, and it refuses
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"

        with pytest.raises(EnvironmentProblem, match=rf"no Ray cluster answers at '{address}'.*refused"):
            connect(ClusterSection(address=address), cpus=1)


def test_an_address_of_the_dashboard_is_refused():
    refused = r"no Ray cluster answers at 'http://localhost:8265' \(Invalid Ray address"
    with pytest.raises(EnvironmentProblem, match=refused):
        connect(ClusterSection(address="http://localhost:8265"), cpus=1)
