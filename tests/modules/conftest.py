"""Fixtures of the neurons besides Leaky."""

from __future__ import annotations

import pytest

from tests.support.neurons import KINDS, Kind


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def kind(name: str) -> Kind:
    return KINDS[name]
