"""Reconciling: whatever view of a conversation a client sends, the session ends exactly as it believes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longmem import InputError, Turn
from longmem.dialogue import Message, Past, Plan, ToolCall, reconcile, turn_message
from longmem.dialogue.alignment import agreements, by_tail
from longmem.dialogue.chain import KEY, START, chain, digest, link


@dataclass
class Committed:
    """The committed turns of a session, without a session."""

    linked: bool = True
    held: list[Turn] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=lambda: [START])
    reads: int = 0

    def commit(self, *messages: Message) -> None:
        """One exchange more."""
        values = chain(messages, self.values[-1])
        for i, message in enumerate(messages):
            extra = {"id": message.id} if message.id else {}
            if self.linked:
                extra[KEY] = link(len(self.values) + i, values[i + 1])
            self.held.append(Turn(message.role, message.text, len(self.held), extra=extra))
        self.values += values[1:]
        self.ends.append(len(self.held) - 1)

    @property
    def n_turns(self) -> int:
        return len(self.held)

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        self.reads += len(self.held[start:stop])
        return self.held[start:stop]

    def boundary(self, turn: int) -> int:
        return max((end for end in self.ends if end <= turn), default=-1)

    def after(self, plan: Plan) -> list[tuple[str, str]]:
        """What the session holds once the plan is carried out, system prompt left out."""
        offset = 1 if self.held and self.held[0].role == "system" else 0
        kept = self.held[offset : offset + plan.keep]
        return said([*map(turn_message, kept), *plan.messages])


def said(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


def user(text: str, id: str | None = None) -> Message:
    return Message("user", text, id)


def assistant(text: str, id: str | None = None) -> Message:
    return Message("assistant", text, id)


def talk(*texts: str, ids: bool = False) -> list[Message]:
    """User and assistant in turns."""
    return [
        Message("user" if i % 2 == 0 else "assistant", text, f"id-{i}" if ids else None)
        for i, text in enumerate(texts)
    ]


def session(*texts: str, ids: bool = False, linked: bool = True, system: bool = False) -> Committed:
    """A session of whole exchanges."""
    made = Committed(linked)
    if system:
        made.held.append(Turn("system", "Be brief.", 0))
        made.ends.append(0)
    messages = talk(*texts, ids=ids)
    for i in range(0, len(messages), 2):
        made.commit(*messages[i : i + 2])
    return made


def plan_for(made: Committed, messages: list[Message], **options: object) -> Plan:
    """The plan; see a test of their own for `agreed` and `unknown`."""
    plan = reconcile(Past(made), messages, **options)  # type: ignore[arg-type]
    return replace(plan, agreed=0, unknown=0)


def test_new_messages_are_read_behind_all_that_was_said() -> None:
    made = session("a", "ok", "b", "fine")
    assert plan_for(made, [user("c")]) == Plan(4, (user("c"),), False, False)


def test_a_whole_list_that_goes_on_is_read_from_where_it_is_new() -> None:
    made = session("a", "ok", "b", "fine", system=True)
    plan = plan_for(made, talk("a", "ok", "b", "fine", "c"))
    assert plan == Plan(4, (user("c"),), False, False)


def test_time_travel_ends_with_exactly_the_messages_sent() -> None:
    made = session("a", "ok", "b", "fine", "c", "good")
    plan = plan_for(made, talk("a", "ok", "FORK"))
    assert plan == Plan(2, (user("FORK"),), True, False)


def test_a_list_that_ends_with_an_answered_message_asks_for_another_answer() -> None:
    made = session("a", "ok", "b", "fine")
    assert plan_for(made, talk("a", "ok", "b")) == Plan(2, (user("b"),), True, True)
    assert plan_for(made, talk("a"), scope="whole") == Plan(0, (user("a"),), True, False)


def test_an_edited_reply_is_read_in_place_of_the_one_that_was_given() -> None:
    made = session("a", "ok", "b", "fine")
    plan = plan_for(made, talk("a", "no", "c"))
    assert plan == Plan(0, (user("a"), assistant("no"), user("c")), True, False)


def test_a_trimmed_head_is_found_by_ids() -> None:
    made = session("a", "ok", "b", "fine", "a", "good", ids=True)
    for start in (2, 4):
        new = user("c", "id-new")
        sent = [*talk("a", "ok", "b", "fine", "a", "good", ids=True)[start:], new]
        assert plan_for(made, sent) == Plan(6, (new,), False, False)


def test_a_trimmed_head_without_ids_is_found_by_the_longest_run_that_ends_the_session() -> None:
    made = session("a", "ok", "b", "ok", "c", "ok", "b", "ok")
    assert plan_for(made, talk("b", "ok", "d")) == Plan(8, (user("d"),), False, False)
    assert plan_for(made, talk("b", "ok", "c", "ok", "b", "ok", "d")).keep == 8
    assert plan_for(made, talk("c", "ok", "b", "ok", "d")) == Plan(8, (user("d"),), False, False)


def test_a_list_that_shares_nothing_is_never_appended() -> None:
    made = session("a", "ok", "b", "fine")
    foreign = talk("x", "y", "z")
    assert plan_for(made, foreign) == Plan(0, tuple(foreign), True, False)


def test_one_equal_message_is_no_trimmed_head() -> None:
    made = session("a", "ok", "b", "fine")
    sent = [assistant("fine"), user("c")]
    assert plan_for(made, sent) == Plan(0, tuple(sent), True, False)


def test_a_list_without_replies_whose_first_message_is_known_by_its_id_is_not_read_twice() -> None:
    made = session("a", "ok", ids=True)
    sent = [user("a", "id-0"), user("c", "id-c")]
    assert plan_for(made, sent) == Plan(0, tuple(sent), True, False)
    assert plan_for(made, [user("b", "another")]) == Plan(2, (user("b", "another"),), False, False)


def test_where_a_commit_is_cut_in_two_its_kept_messages_are_read_again() -> None:
    made = Committed()
    made.commit(*talk("a", "ok", "b", "fine"))
    plan = plan_for(made, talk("a", "ok", "B"))
    assert plan == Plan(0, tuple(talk("a", "ok", "B")), True, False)
    assert plan_for(made, [user("B")], at=1) == plan


def test_new_messages_go_on_from_the_turn_that_is_named() -> None:
    made = session("a", "ok", "b", "fine", system=True)
    assert plan_for(made, [user("c")], at=4) == Plan(4, (user("c"),), False, False)
    assert plan_for(made, [user("c")], at=2) == Plan(2, (user("c"),), True, False)
    assert plan_for(made, [user("c")], at=0) == Plan(0, (user("c"),), True, False)
    assert plan_for(made, [user("b")], at=2) == Plan(2, (user("b"),), True, True)
    for at in (5, -2):
        with pytest.raises(InputError, match=f"no turn {at}"):
            plan_for(made, [user("c")], at=at)


@pytest.mark.parametrize("system", [False, True])
def test_a_system_prompt_read_in_one_commit_with_others_goes_with_them(system: bool) -> None:
    made = Committed()
    if system:
        made.held.append(Turn("system", "Be brief.", 0))
    made.commit(*talk("a", "ok"))
    plan = plan_for(made, talk("x", "y", "z"))
    assert plan.diverges
    assert plan.keep == (-1 if system else 0)


def test_a_plan_tells_how_far_list_and_session_go_together() -> None:
    made = session("a", "ok", "b", "fine")
    for sent, agreed, unknown in [
        (talk("a", "ok", "b", "fine", "c"), 4, 1),
        (talk("a", "ok", "b"), 3, 0),
        (talk("a", "ok", "B", "fine", "c"), 2, 3),
        (talk("b", "fine", "c"), 4, 1),
    ]:
        plan = reconcile(Past(made), sent)
        assert (plan.agreed, plan.unknown) == (agreed, unknown)


def test_a_tool_call_is_the_same_however_its_json_is_laid_out() -> None:
    first = Message("assistant", "", tool_calls=(ToolCall("1", "f", '{"a": 1, "b": 2}'),))
    second = Message("assistant", " ", tool_calls=(ToolCall("2", "f", '{"b":2,"a":1}'),))
    other = Message("assistant", "", tool_calls=(ToolCall("1", "f", '{"a": 1, "b": 3}'),))
    assert digest(first) == digest(second) != digest(other)


def test_forgotten_turns_leave_no_chain_value_that_covers_them() -> None:
    made = session("a", "ok", "b", "fine", "c", "good")
    del made.held[2:4]
    made.held = [Turn(t.role, t.text, i, extra=t.extra) for i, t in enumerate(made.held)]
    made.ends = [1, 3]
    assert plan_for(made, talk("a", "ok", "c", "good", "d")) == Plan(4, (user("d"),), False, False)
    assert plan_for(made, talk("a", "ok", "b", "fine", "c", "good", "d")).keep == 2


TEXTS = st.text("abc ", min_size=1, max_size=3)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Committed, list[Message]]:
    """A conversation of distinct messages, cut into commits anyhow, and its messages."""
    n = draw(st.integers(1, 10))
    ids, linked = draw(st.booleans()), draw(st.booleans())
    messages = talk(*[f"{draw(TEXTS)}{i}" for i in range(2 * n)], ids=ids)
    made = Committed(linked)
    if draw(st.booleans()):
        made.held.append(Turn("system", "Be brief.", 0))
        made.ends.append(0)
    start = 0
    while start < n:
        stop = draw(st.integers(start + 1, n))
        made.commit(*messages[2 * start : 2 * stop])
        start = stop
    return made, messages


@given(histories(), st.data())
def test_the_session_ends_as_the_client_believes(
    history: tuple[Committed, list[Message]], data: st.DataObject
) -> None:
    made, messages = history
    ids = messages[0].id is not None
    new = user("the new one", "id-new" if ids else None)
    kind = data.draw(
        st.sampled_from(["whole", "new", "trimmed", "edited", "again", "shortened", "foreign"])
    )
    cut = data.draw(st.integers(0, len(messages) // 2 - 1)) * 2
    believed, scope = [*messages, new], "auto"
    sent = believed
    if kind == "new":
        sent, scope = [new], "new"
    elif kind == "trimmed":
        sent, scope = believed[cut:], "whole"
    elif kind == "edited":
        at = data.draw(st.integers(0, len(messages) - 1))
        changed = Message(messages[at].role, "changed", messages[at].id)
        sent = believed = [*messages[:at], changed, *messages[at + 1 :], new]
    elif kind == "again":
        sent, scope = messages[: cut + 1], "whole"
        believed = sent
    elif kind == "shortened":
        sent, scope = [*messages[:cut], new], "whole"
        believed = sent
    elif kind == "foreign":
        sent = believed = talk("x", "y", "z")
    plan = plan_for(made, sent, scope=scope)
    assert made.after(plan) == said(believed)
    assert plan.messages[-1] == sent[-1]
    last = (made.n_turns - len(messages)) + plan.keep - 1
    assert last == -1 or last in made.ends, "a commit ends behind what is kept"
    assert plan.diverges == (plan.keep < len(messages))


@given(histories(), st.integers(0, 9))
def test_a_window_of_the_conversation_is_a_part_of_it_where_ids_or_its_end_tell(
    history: tuple[Committed, list[Message]], start: int
) -> None:
    made, messages = history
    start = min(2 * start, len(messages) - 2)
    last = Past(made).boundary(len(messages) - 1)
    for stop in range(start + 2, len(messages) + 1, 2):
        sent = [*messages[start:stop], user("new")]
        known = messages[0].id is not None or stop >= last
        plan = plan_for(made, sent, scope="whole")
        assert made.after(plan) == said([*messages[: start if known else 0], *sent])


def naive_tail(past: Past, messages: list[Message]) -> tuple[int, int] | None:
    """`by_tail`, each place compared for itself."""
    held, end = past.messages(0, past.n), past.boundary(past.n - 1)
    found = []
    for start in range(past.n):
        pairs = zip(held[start:], messages, strict=False)
        agreed = len(list(takewhile(lambda pair: digest(pair[0]) == digest(pair[1]), pairs)))
        exchange = agreed > 1 and "assistant" in [message.role for message in messages[:agreed]]
        if exchange and start + agreed >= end:
            found.append((agreed, start))
    return max(found)[::-1] if found else None


ROLES = st.sampled_from(["user", "assistant"])
ALIKE = st.lists(st.builds(Message, ROLES, st.sampled_from("ab")), min_size=1, max_size=12)


@given(st.lists(ALIKE, min_size=1, max_size=4), st.lists(ALIKE, max_size=2), st.integers(0, 30))
def test_a_tail_is_found_where_comparing_every_place_finds_it(
    commits: list[list[Message]], others: list[list[Message]], start: int
) -> None:
    made = Committed()
    for commit in commits:
        made.commit(*commit)
    held = [message for commit in commits for message in commit]
    sent = [*held[start:], *(message for other in others for message in other), user("new")]
    past = Past(made)
    wide = [*sent, *(user(f"more {i}") for i in range(past.n))]  # all of the session is looked at
    assert by_tail(past, wide) == naive_tail(past, wide)


class Counted(bytes):
    """A digest that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return bytes.__eq__(self, other)

    __hash__ = bytes.__hash__


@pytest.mark.parametrize("pattern", ["a", "ab", "aab"])
def test_the_tail_of_messages_that_are_all_alike_is_found_in_linear_time(pattern: str) -> None:
    n = 600
    sent = [Counted(pattern[i % len(pattern)].encode()) for i in range(n)]
    Counted.compared = 0
    found = agreements([Counted(each) for each in sent], sent)
    assert found[:: len(pattern)] == list(range(n, 0, -len(pattern)))
    assert Counted.compared <= 2 * (2 * n + 1), "each is matched once, and once it is not"


@given(st.integers(1, 400), st.data())
def test_a_whole_list_reads_few_turns_of_a_long_session(n: int, data: st.DataObject) -> None:
    messages = talk(*[str(i) for i in range(2 * n)])
    made = Committed()
    for i in range(0, 2 * n, 2):
        made.commit(*messages[i : i + 2])
    keep = 2 * data.draw(st.integers(0, n))
    plan = plan_for(made, [*messages[:keep], user("new")], scope="whole")
    assert plan.keep == keep
    assert made.reads <= 2 * math.ceil(math.log2(2 * n + 1)) + 4 + (40 if keep == 0 else 0)
