"""LangChain's own tests of key-value stores, and what they leave out."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests

from lag_integrations.errors import StoreError

VALUES = ({"text": "Ada likes tea."}, {"years": [1874, 1882]}, {"nested": {"deep": None}})


class TestSync(BaseStoreSyncTests):
    @pytest.fixture
    def kv_store(self, memory):
        return memory.as_key_value_store()

    @pytest.fixture
    def three_values(self):
        return VALUES


class TestAsync(BaseStoreAsyncTests):
    @pytest.fixture
    async def kv_store(self, memory):
        return memory.as_key_value_store()

    @pytest.fixture
    def three_values(self):
        return VALUES


def test_stores_of_other_names_and_deeper_namespaces_are_not_seen(memory):
    one, other = memory.as_key_value_store(name="one"), memory.as_key_value_store(name="other")
    one.mset([("key", VALUES[0])])
    memory.as_store().put(("one", "deeper"), "hidden", VALUES[1])
    assert other.mget(["key"]) == [None]
    assert list(other.yield_keys()) == []
    assert list(one.yield_keys()) == ["key"]
    other.mdelete(["key"])
    assert one.mget(["key"]) == [VALUES[0]]


def test_keys_may_be_deleted_while_they_are_listed(memory):
    store = memory.as_key_value_store()
    store.mset([(f"key {number}", {"number": number}) for number in range(5)])
    for key in store.yield_keys(prefix="key"):
        store.mdelete([key])
    assert list(store.yield_keys()) == []


def test_a_value_is_recalled_as_a_log(memory):
    memory.as_key_value_store().mset([("tea", {"text": "Ada drinks her tea with lemon."})])
    memory.embed_pending()
    found = memory.recall("How does Ada drink her tea?")
    assert [log.trace.last_response for log in found] == ["text: Ada drinks her tea with lemon."]


def test_what_is_not_json_is_refused(memory):
    with pytest.raises(StoreError, match="not JSON"):
        memory.as_key_value_store().mset([("key", {"value": object()})])


def test_a_value_that_is_no_dict_is_refused_by_its_type(memory):
    with pytest.raises(StoreError, match=r"'a' is a str; it must be a dict"):
        memory.as_key_value_store().mset([("a", "x")])
