"""Recall tasks by name: conversations with questions, made and scored as their papers do."""

from __future__ import annotations

from longmem.bench.tasks.conversation import Conversation
from longmem.bench.tasks.key_value import KeyValue
from longmem.bench.tasks.lines import Lines
from longmem.bench.tasks.niah import MultiKey, MultiQuery, MultiValue, Single
from longmem.bench.tasks.passkey import NumberString, PassKey
from longmem.bench.tasks.task import CountTokens, Prompt, Question, Shrinking, Task
from longmem.bench.tasks.variable_tracking import VariableTracking
from longmem.errors import ConfigError

__all__ = [
    "TASKS",
    "CountTokens",
    "Prompt",
    "Question",
    "Shrinking",
    "Task",
    "get_task",
    "register",
]

_tasks: dict[str, Task] = {}


def register(task: Task) -> None:
    """Make `task` known under its name; a task of the same name is replaced."""
    _tasks[task.name] = task


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in _tasks:
        raise ConfigError(f"no task is called {name!r}; choose one of: {', '.join(_tasks)}")
    return _tasks[name]


_OWN: tuple[Task, ...] = (
    PassKey(),
    NumberString(),
    Single(),
    MultiKey(),
    MultiValue(),
    MultiQuery(),
    KeyValue(75),
    KeyValue(140),
    VariableTracking(),
    Lines(),
    Conversation(),
    Conversation(days=3),
)
for _task in _OWN:
    register(_task)

TASKS = tuple(task.name for task in _OWN)
"""Names of the tasks that come with longmem, in the order tables show them."""
