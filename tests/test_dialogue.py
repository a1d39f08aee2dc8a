"""Dialogues: new messages or the whole list, one session that ends as the client believes."""

from __future__ import annotations

import re
from pathlib import Path

import dialogues
import pytest
from dialogues import answer, ask, held, names, talk, user
from scripted import Scripted

from longmem import DivergedError, InputError, SystemChangedError
from longmem.dialogue import Dialogue, Message, Request

engine, dialogue = dialogues.engine, dialogues.dialogue


def test_a_new_message_is_all_that_is_read(dialogue: Dialogue, engine: Scripted) -> None:
    first = ask(dialogue, "a")
    before = engine.tokens_read
    second = ask(dialogue, "b")
    assert held(dialogue) == ["a", "re a", "b", "re b"]
    turns = dialogue.turns(None, "s")
    assert first.read + first.from_memory + 2 < second.from_memory + second.read
    assert second.read == turns[2].tokens + len(engine.chat.reply_header_ids("user"))
    assert engine.tokens_read - before == turns[2].tokens + turns[3].tokens
    assert (second.turn, second.session, second.repeated) == (3, "s", False)
    assert second.message == answer("re b", second.message.id)


def test_a_whole_list_reads_what_is_new_of_it(dialogue: Dialogue, engine: Scripted) -> None:
    ask(dialogue, "a")
    new = ask(dialogue, "b", session="other")
    before = engine.tokens_read
    whole = ask(dialogue, "a", "re a", "b")
    assert held(dialogue) == ["a", "re a", "b", "re b"]
    assert whole.read == new.read
    assert engine.tokens_read - before == sum(turn.tokens for turn in dialogue.turns(None, "s")[2:])


def test_time_travel_leaves_the_session_and_answers_in_a_fork(dialogue: Dialogue) -> None:
    for text in ("a", "b", "c"):
        ask(dialogue, text)
    outcome = ask(dialogue, "a", "re a", "FORK")
    assert outcome.forked_from == "s"
    assert outcome.session is not None
    assert outcome.session.startswith("s~")
    assert held(dialogue, outcome.session) == ["a", "re a", "FORK", "re FORK"]
    assert held(dialogue) == ["a", "re a", "b", "re b", "c", "re c"]
    assert outcome.turn == 3


def test_a_rollback_ends_the_session_with_exactly_the_list(dialogue: Dialogue) -> None:
    for text in ("a", "b", "c"):
        ask(dialogue, text)
    outcome = ask(dialogue, "a", "re a", "FORK", diverge="rollback")
    assert (outcome.session, outcome.forked_from) == ("s", None)
    assert held(dialogue) == ["a", "re a", "FORK", "re FORK"]
    assert names(dialogue) == ["s"]


def test_a_list_that_diverges_is_refused_if_neither_is_wanted(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    with pytest.raises(DivergedError, match="went on otherwise behind turn -1"):
        ask(dialogue, "x", "y", "z", diverge="refuse")
    assert held(dialogue) == ["a", "re a"]


def test_the_fork_gets_the_id_and_metadata_that_are_asked_for(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")
    outcome = ask(dialogue, "B", at=1, fork_id="f", metadata={"thread": 1})
    assert outcome.session == "f"
    assert held(dialogue, "f") == ["a", "re a", "B", "re B"]
    assert dialogue.info(None, "f").metadata == {"thread": 1}
    assert dialogue.info(None, "f").parent == "s"
    with pytest.raises(InputError, match="fork_id 'f' is the id of a session"):
        ask(dialogue, "B", at=1, fork_id="f")
    assert held(dialogue, "f") == ["a", "re a", "B", "re B"]


def test_a_fork_is_made_at_the_end_too_if_one_is_wanted_in_any_case(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    outcome = ask(dialogue, "b", at=1, always_fork=True, fork_id="f")
    assert (outcome.session, outcome.forked_from) == ("f", "s")
    assert held(dialogue, "f") == ["a", "re a", "b", "re b"]
    assert held(dialogue) == ["a", "re a"]
    assert ask(dialogue, "b", at=1, always_fork=True, retry=True).session == "f"
    assert ask(dialogue, "c", at=1, always_fork=True, store=False).session is None
    assert names(dialogue) == ["f", "s"]


def test_a_regenerated_answer_takes_the_place_of_the_last(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    ask(dialogue, "b")
    again = ask(dialogue, "a", "re a", "b", diverge="rollback")
    assert not again.repeated
    assert held(dialogue) == ["a", "re a", "b", "re b"]
    assert ask(dialogue, "a", scope="whole", diverge="rollback").turn == 1
    assert held(dialogue) == ["a", "re a"]


def test_a_list_trimmed_at_its_head_goes_on(dialogue: Dialogue) -> None:
    for text in ("a", "b", "c"):
        ask(dialogue, text)
    assert ask(dialogue, "b", "re b", "c", "re c", "d").forked_from is None
    assert held(dialogue)[-3:] == ["re c", "d", "re d"]
    assert len(held(dialogue)) == 8


def test_ids_tell_where_a_trimmed_list_begins(dialogue: Dialogue) -> None:
    request = Request([user("same", "u1")], session="s", message_id="r1")
    dialogue.reply(request)
    dialogue.reply(Request([user("same", "u2")], session="s", message_id="r2"))
    dialogue.reply(Request([user("same", "u3")], session="s", message_id="r3"))
    sent = [user("same", "u2"), answer("re same", "r2"), user("other", "u4")]
    outcome = dialogue.reply(Request(sent, session="s"))
    assert outcome.forked_from == "s"
    assert held(dialogue, outcome.session or "") == ["same", "re same"] * 2 + ["other", "re other"]


def test_messages_come_back_with_their_ids(dialogue: Dialogue) -> None:
    outcome = dialogue.reply(Request([user("a", "u1")], session="s", message_id="r1"))
    assert outcome.message.id == "r1"
    assert [turn.extra["id"] for turn in dialogue.turns(None, "s")] == ["u1", "r1"]
    assert ask(dialogue, "b").message.id.startswith("msg_")  # type: ignore[union-attr]


def test_without_a_session_nothing_is_stored(dialogue: Dialogue) -> None:
    outcome = ask(dialogue, "a", "no", "b", session=None)
    assert (outcome.session, outcome.turn, outcome.from_memory) == (None, None, 0)
    assert outcome.message.text == "re b"
    assert names(dialogue) == []


def test_store_false_answers_from_memory_and_keeps_nothing(dialogue: Dialogue) -> None:
    assert ask(dialogue, "a", store=False).session is None
    assert names(dialogue) == []
    ask(dialogue, "a")
    outcome = ask(dialogue, "a", "re a", "b", store=False)
    assert (outcome.session, outcome.turn) == (None, None)
    assert outcome.from_memory == sum(turn.tokens for turn in dialogue.turns(None, "s"))
    for diverge in ("fork", "rollback"):
        away = ask(dialogue, "x", "y", "z", store=False, diverge=diverge)
        assert (away.session, away.message.text) == (None, "re z")
    assert ask(dialogue, "c", at=-1, store=False).from_memory == 0
    assert names(dialogue) == ["s"]
    assert held(dialogue) == ["a", "re a"]


def test_another_system_prompt_is_refused_or_the_pinned_one_kept(dialogue: Dialogue) -> None:
    def send(system: str, text: str, **options: object) -> object:
        messages = [Message("system", system), user(text)]
        return dialogue.reply(Request(messages, session="s", **options))  # type: ignore[arg-type]

    first = send("Be brief.", "a")
    assert first.from_memory == 0  # type: ignore[attr-defined]
    send("Be brief.", "b")
    with pytest.raises(SystemChangedError, match="another system prompt"):
        send("Be long.", "c")
    send("Be long.", "c", on_system="keep")
    assert held(dialogue) == ["Be brief.", "a", "re a", "b", "re b", "c", "re c"]
    whole = [Message("system", "Be brief."), *talk("a", "re a", "B")]
    outcome = dialogue.reply(Request(whole, session="s", diverge="rollback"))
    assert outcome.turn == 4
    assert held(dialogue) == ["Be brief.", "a", "re a", "B", "re B"]
    from_start = dialogue.reply(Request(talk("x", "y", "z"), session="s"))
    assert from_start.from_memory == dialogue.turns(None, "s")[0].tokens
    assert held(dialogue, from_start.session or "") == ["Be brief.", "x", "y", "z", "re z"]


def test_several_system_messages_are_one_prompt(dialogue: Dialogue) -> None:
    system = [Message("system", "One."), Message("system", "Two.")]
    dialogue.reply(Request([*system, user("a")], session="s"))
    assert held(dialogue)[0] == "One.\n\nTwo."


def test_an_empty_session_takes_the_prompt_of_its_first_request(dialogue: Dialogue) -> None:
    info = dialogue.create(None, "s", metadata={"k": 1})
    assert (info.id, info.n_turns, info.metadata) == ("s", 0, {"k": 1})
    with pytest.raises(InputError, match="there already"):
        dialogue.create(None, "s")
    request = Request([Message("system", "Hm."), user("a")], session="s")
    with dialogue.stream(request) as exchange:
        next(iter(exchange))
    assert held(dialogue) == []
    dialogue.reply(request)
    assert held(dialogue) == ["Hm.", "a", "re a"]


def test_verbs_work_on_sessions_of_a_pool(dialogue: Dialogue) -> None:
    for text in ("a", "b", "c"):
        ask(dialogue, text)
    assert dialogue.fork(None, "s", "f", at=3) == "f"
    assert dialogue.fork(None, "s").startswith("s~")
    assert held(dialogue, "f") == ["a", "re a", "b", "re b"]
    dialogue.rollback(None, "s", 1)
    assert held(dialogue) == ["a", "re a"]
    dialogue.forget(None, "f", [0, 1])
    assert held(dialogue, "f") == ["b", "re b"]
    assert dialogue.stats(None, "f").turns == 2
    assert [each.turn.text for each in dialogue.recall(None, "f", "b", text=True)]
    assert [turn.text for turn in dialogue.turns(None, "f", 1, 2)] == ["re b"]
    dialogue.delete(None, "f")
    dialogue.erase(None, "s")
    assert all(name.startswith("s~") for name in names(dialogue))
    with pytest.raises(InputError, match="there already"):
        dialogue.fork(None, names(dialogue)[0], names(dialogue)[0])


def test_a_dialogue_without_a_store_answers_without_sessions(engine: Scripted) -> None:
    with Dialogue(engine, None) as dialogue:
        assert ask(dialogue, "a", session=None).message.text == "re a"
        with pytest.raises(InputError, match="no store"):
            ask(dialogue, "a")


def test_the_blocks_of_the_docs_run_one_after_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "dialogue.md").read_text("utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/dialogue.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "482913" in printed
    assert "was forked from chat" in printed
    assert "stop chat" in printed


def test_a_prompt_for_a_session_that_has_none_is_another_one(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    late = Request([Message("system", "Be brief."), user("b")], session="s")
    with pytest.raises(SystemChangedError):
        dialogue.reply(late)
    assert held(dialogue) == ["a", "re a"]
    sent = [*talk("a", "re a"), Message("system", "Hm."), user("c")]
    assert dialogue.reply(Request(sent, session="s")).turn == 4, "one further on is a message"
    more = [*sent, answer("re c"), user("d")]
    assert dialogue.reply(Request(more, session="s")).turn == 6


def test_several_new_messages_are_read_in_one_exchange(dialogue: Dialogue) -> None:
    ask(dialogue, "a")
    outcome = ask(dialogue, "b", "fine", "c", scope="new")
    assert outcome.turn == 5
    assert held(dialogue) == ["a", "re a", "b", "fine", "c", "re c"]
    again = ask(dialogue, "a", "re a", "b", "fine", "C", diverge="rollback")
    assert again.turn == 5
    assert again.from_memory == sum(turn.tokens for turn in dialogue.turns(None, "s")[:2])
    assert held(dialogue) == ["a", "re a", "b", "fine", "C", "re C"]


def test_a_session_that_was_not_made_by_a_dialogue_is_reconciled_as_well(
    dialogue: Dialogue,
) -> None:
    with dialogue.engine.session("s", store=dialogue.pool.store, system="Hm.") as session:
        for text in ("a", "b", "c"):
            session.ask(text)
    sent = [Message("system", "Hm."), *talk("a", "re a", "b", "re b", "c", "re c", "d")]
    assert dialogue.reply(Request(sent, session="s")).forked_from is None
    assert ask(dialogue, "a", "re a", "B", diverge="rollback").turn == 4
    assert held(dialogue) == ["Hm.", "a", "re a", "B", "re B"]


@pytest.mark.parametrize("diverge", ["fork", "rollback"])
def test_a_prompt_that_was_read_together_with_others_stays_when_they_go(
    dialogue: Dialogue, diverge: str
) -> None:
    with dialogue.engine.session("s", store=dialogue.pool.store) as session:
        session.add([("system", "Hm."), ("user", "a"), ("assistant", "ok"), ("user", "b")])
    outcome = ask(dialogue, "a", "ok", "B", diverge=diverge)
    assert held(dialogue, outcome.session or "") == ["Hm.", "a", "ok", "B", "re B"]
    assert outcome.from_memory == 0
    if diverge == "fork":
        assert held(dialogue) == ["Hm.", "a", "ok", "b"]
