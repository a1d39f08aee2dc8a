"""What the tests of the adapters for agent frameworks share: an engine, replies of a type.

A test file takes the fixture by assignment: ``engine = frameworks.engine``.
"""

from __future__ import annotations

import sys
from typing import Literal

import pytest
from pydantic import BaseModel
from scripted import Scripted, scripted_engine

OPENING = 3
"""Tokens of the template with which a reply begins."""


class Answer(BaseModel):
    """A structured reply."""

    city: str
    degrees: int


class Pick(BaseModel):
    """A structured reply with few forms, so that a model that rambles comes to its end."""

    city: Literal["Bern", "Oslo"]
    sure: bool


@pytest.fixture(scope="module")
def engine() -> Scripted:
    """One for all tests of a file, each of which scripts its own replies."""
    return scripted_engine([])


def call(name: str, arguments: str) -> str:
    """What the model writes to call a tool."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def uninstall(monkeypatch: pytest.MonkeyPatch, package: str, adapter: str) -> None:
    """Let a package be missing, and its adapter not yet imported."""
    for name in list(sys.modules):
        if name.startswith((adapter, f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
