"""Random requests by the API's own description: none of them makes the server fail."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.serving.conftest import serving


@pytest.fixture(scope="module")
def gateway(small, embedder, tmp_path_factory):
    from lag_integrations import KVLogMemory

    folder = tmp_path_factory.mktemp("fuzzed")
    with serving(
        small,
        lambda name: KVLogMemory(folder, namespace=name, embedder=embedder),
        name="small",
        max_tokens=4,
        timeout=5,
    ) as server:
        yield server


def status(case, url):
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "small"  # else all of them ask for an unknown one
    reply = case.call(base_url=url)
    assert reply.status_code < 500, (case.body, reply.status_code, reply.text[:300])
    if reply.status_code >= 400:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    return reply.status_code


@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_no_request_makes_it_fail(gateway, examples):
    api = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    operations = [operation.ok() for operation in api.get_all_operations()]
    assert len(operations) == 10
    for operation in operations:
        seen = statuses(operation, examples, gateway.url)
        if "{" not in operation.path and "feedback" not in operation.path:
            assert 200 in seen, operation.label


def statuses(operation, examples, url):
    """The statuses of random requests."""
    seen = set()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 100,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def run(case):
        seen.add(status(case, url))

    run()
    return seen
