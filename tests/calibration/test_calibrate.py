"""Calibrating a model, and what follows from it. The model is tiny and random."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from lag_integrations import Engine, KVLogMemory
from lag_integrations.calibration.calibrate import calibrate
from lag_integrations.calibration.cases import CASES, KINDS
from lag_integrations.calibration.measure import SETTINGS, measure
from lag_integrations.engine import log_settings
from lag_integrations.engine.log_settings import DEFAULTS, Calibration
from lag_integrations.engine.token_selection import LastTurn, TaskAndLastTurns
from lag_integrations.errors import CalibrationError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.message import Message
from tests.conftest import qa
from tests.store.model import hash_embedder, tiny_engine

VAULT = qa("What is the code of the vault in Lima ?", "The code of the vault in Lima is 7741.")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for calibrations."""
    monkeypatch.setattr(log_settings, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def measured() -> Calibration:
    """A calibration of the tiny model, not kept for other tests; what it says is chance."""
    return measure(tiny_engine())


def of(measured: Calibration, **changes: object) -> Calibration:
    return measured.model_copy(update=changes)


def test_what_was_measured_is_complete(measured):
    names = [figures.setting for figures in measured.figures]
    assert names == [*(setting.name for setting in SETTINGS), "text", "none"]
    for figures in measured.figures:
        assert set(figures.likelihood) == set(KINDS)
        assert figures.value < 0
        assert max(figures.likelihood.values()) < 0
    values = {figures.setting: figures.value for figures in measured.figures}
    assert measured.gain == pytest.approx(values[measured.name] - values["text"], abs=1e-6)
    assert measured.gain_interval[0] <= measured.gain <= measured.gain_interval[1]
    assert measured.tokens > 1000


def test_the_defaults_are_preferred_where_nothing_is_better(cache):
    assert tiny_engine().log_settings is DEFAULTS
    assert SETTINGS[0] == DEFAULTS


def test_it_is_measured_once(cache, measured):
    engine, done = tiny_engine(), []
    assert engine.calibration is None
    found = calibrate(engine, lambda *of: done.append(of))
    assert done[-1] == (len(CASES), len(CASES))
    assert found.figures == measured.figures
    assert calibrate(engine) is found
    other_process = tiny_engine()
    assert other_process.calibration == found
    assert calibrate(other_process, lambda *_: pytest.fail("measured again")) == found
    assert calibrate(engine, again=True) is not found
    assert tiny_engine(seed=1).calibration is None


def test_its_settings_are_used(cache, measured):
    engine = tiny_engine()
    segment = engine.encode(VAULT)
    assert engine.selection == TaskAndLastTurns()
    assert engine.request(VAULT.messages[:1], [segment]).attention_temperature == 0.9
    engine.use_calibration(of(measured, selection=LastTurn().name, temperature=0.8))
    assert engine.selection == LastTurn()
    assert len(engine.encode(VAULT)) < len(segment)
    assert engine.request(VAULT.messages[:1], [segment]).attention_temperature == 0.8
    given = engine.request(VAULT.messages[:1], [segment], attention_temperature=1.0)
    assert given.attention_temperature == 1.0


def test_another_models_calibration_is_refused(measured):
    with pytest.raises(CalibrationError, match=r"is of model .* calibrate this one"):
        tiny_engine(seed=1).use_calibration(measured)


@pytest.mark.parametrize("damage", ["cut off", "not JSON", "other version", "other model"])
def test_a_calibration_that_does_not_fit_is_not_used(cache, measured, caplog, damage):
    path = log_settings.save(measured)
    text = path.read_text("utf-8")
    path.write_text(
        {
            "cut off": text[: len(text) // 2],
            "not JSON": "\0",
            "other version": of(measured, version=99).model_dump_json(),
            "other model": of(measured, fingerprint="f" * 64).model_dump_json(),
        }[damage]
    )
    assert tiny_engine().calibration is None
    (said,) = caplog.records
    assert str(path) in said.getMessage()
    with pytest.raises(CalibrationError, match="calibrate the model again"):
        Calibration.from_json(text[: len(text) // 2])


def test_a_calibration_that_cannot_be_written_says_so(monkeypatch, tmp_path, measured):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(log_settings, "cache_folder", lambda: tmp_path / "file")
    with pytest.raises(CalibrationError, match="LAG_CACHE"):
        log_settings.save(measured)


def test_a_model_with_a_tiny_window_cannot_be_calibrated(cache):
    engine = tiny_engine()
    engine.positions.window = 64
    with pytest.raises(CalibrationError, match="window of 64 tokens"):
        calibrate(engine)
    assert not cache.exists()


def test_the_store_keeps_it_for_processes_without_the_cache(cache, tmp_path, measured, caplog):
    engine = tiny_engine()
    engine.use_calibration(measured)
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder) as memory:
        memory.attach(engine)
    elsewhere = tiny_engine()
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder) as memory:
        memory.attach(elsewhere)
        assert elsewhere.calibration == measured
        newer = of(measured, temperature=0.85)
        elsewhere.use_calibration(newer)
        memory.attach(elsewhere)
        assert memory.store.metadata.calibration(measured.fingerprint) == newer.model_dump_json()
        memory.store.metadata.set_calibration(measured.fingerprint, "{")
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder) as memory:
        memory.attach(unlucky := tiny_engine())
        assert unlucky.calibration is None
        assert "is not used" in caplog.text


def test_a_model_that_is_worse_with_kv_gets_text_and_it_is_said(cache, tmp_path, measured, caplog):
    engine = tiny_engine()
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1) as memory:
        memory.add(VAULT)
        model = LAGChatModel(model=engine, memory=memory, temperature=0, max_tokens=4)
        _ = model.engine
        memory.flush()
        lag = model.invoke(VAULT.task).response_metadata["lag"]
        assert lag["form"] == "kv"
        assert lag["injected_tokens"] > 0
        engine.use_calibration(of(measured, form="text", gain=-1.5))
        caplog.set_level(logging.WARNING)
        for _ in range(2):
            lag = model.invoke(VAULT.task).response_metadata["lag"]
            assert lag["form"] == "text"
            assert lag["read_as_text"] == lag["log_ids"] != []
            assert lag["injected_tokens"] == 0
        assert caplog.text.count("is given logs as text") == 1
        assert model.invoke(VAULT.task, k=0).response_metadata["lag"]["form"] is None


def test_likelihoods_are_those_of_a_full_prefill(engine):
    """On the real model: with segments, of several requests at once, greedy or not."""
    segment = engine.encode(VAULT)
    chat = [Message(role="user", content="Which code opens the vault in Lima?")]
    requests = [
        engine.request(chat, [segment], max_new_tokens=8, do_sample=False, top_logprobs=0),
        engine.request(
            chat,
            [segment],
            attention_temperature=0.8,
            max_new_tokens=8,
            do_sample=False,
            top_logprobs=0,
        ),
        engine.request(chat, max_new_tokens=8, do_sample=False, top_logprobs=0),
    ]
    said = [engine.generate_batch([request])[0] for request in requests]
    answers = [one.token_ids for one in said]
    found = engine.log_likelihoods(requests, answers)
    for one, generation in zip(found, said, strict=True):
        expected = torch.tensor([token.logprob for token in generation.logprobs])
        torch.testing.assert_close(one[0], expected, atol=1e-3, rtol=0)
        assert one[1].all()
    together = engine.log_likelihoods(requests[:2], [answers[0]] * 2)
    torch.testing.assert_close(together[0], found[0], atol=1e-3, rtol=0)
    other = engine.log_likelihoods(requests[:1], [answers[2]])[0]
    assert other[0].sum() < found[0][0].sum()


@pytest.mark.slow
def test_the_packaged_model_is_given_kv(cache, engine: Engine):
    found = calibrate(engine)
    assert found.form == "kv"
    assert found.gain > 0
    engine.calibration = None
