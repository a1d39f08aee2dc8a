"""Sessions: turns in, replies out, and nothing left behind by what was dropped."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
import torch
from conftest import SMALL, chatter

from longmem import (
    ConfigError,
    Engine,
    InputError,
    MemoryConfig,
    Sampling,
    SessionClosedError,
    SessionError,
    SessionInUseError,
    SessionNotFoundError,
    TurnTooLargeError,
)
from longmem.ledger import Draft
from longmem.memory import ReadSpan
from longmem.stores import InMemoryStore, SQLiteStore


@pytest.fixture(params=["no store", "memory", "sqlite"])
def store(request, tmp_path):
    if request.param == "no store":
        yield None
    else:
        made = InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store")
        with made:
            yield made


def frozen(session):
    """Everything later results depend on, to compare bit for bit."""
    memory = session._conversation.memory
    if memory is None:
        return None
    parts = [session._conversation.generator.get_state()]
    for layer in memory.layers:
        parts += [layer.local.raw, layer.local.rot, layer.local.v]
    for layer in memory.full_layers:
        parts += [layer.local.mass, *layer.working_set.initial, *layer.lookup.index.export(0)]
    return [part.clone() for part in parts] + [torch.tensor([memory.n_tokens, memory.n_blocks])]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_exchange_is_two_turns_whose_ids_are_the_templates_own(engine, store):
    with engine.session("a", store=store) as session:
        session.add("user", "The gate code is 4711.")
        session.add("assistant", "Noted.")
        reply = session.ask("What is the gate code?", max_new_tokens=12)
        turns = session.turns()
        assert [t.role for t in turns] == ["user", "assistant"] * 2
        assert turns[3].text == reply.text and reply.turn == 3
        record = session._conversation.ledger.history.turns()
        ids = [i for t in record for i in t.ids]
        assert session._conversation.memory.n_tokens == len(ids) == session.stats().tokens
        if reply.finish_reason == "eos":
            messages = [{"role": t.role, "content": t.text} for t in turns]
            expected = engine.tokenizer.apply_chat_template(messages, return_dict=False)
            assert ids == list(expected)


def test_a_reply_that_ends_by_length_is_closed_as_the_template_closes_it(engine, store):
    with engine.session("a", store=store) as session:
        reply = session.ask("Tell me a long story about my aunt.", max_new_tokens=2)
        assert reply.finish_reason == "length" and reply.usage.generated == 2
        ids = session._conversation.ledger.history.turns()[1].ids
        assert list(ids[-2:]) == engine.chat.close_ids(None)
        assert session._conversation.memory.n_tokens == session.stats().tokens


def test_spans_cover_every_token_of_a_turn(engine, store):
    with engine.session("a", store=store) as session:
        session.add(chatter(3))
        session.ask("What now?", max_new_tokens=11)
        for record in session._conversation.ledger.history.turns():
            assert sum(tokens for tokens, _ in record.spans) == len(record.ids)


def test_a_stop_string_ends_the_text_before_it_but_its_ids_stay(engine):
    with engine.session("a") as session:
        free = session.ask("How are you?", commit=False, max_new_tokens=12).text
        stop = free[4:7]
        reply = session.ask("How are you?", max_new_tokens=12, stop=(stop,))
        assert reply.finish_reason == "stop"
        assert reply.text == free[: free.index(stop)]
        decoded = engine.tokenizer.decode(session._conversation.ledger.history.turns()[1].ids)
        assert stop in decoded


def test_streamed_pieces_are_the_reply(engine, store):
    with engine.session("a", store=store) as session:
        stream = session.stream("How are you?", max_new_tokens=12)
        pieces = list(stream)
        assert "".join(pieces) == stream.reply.text and len(pieces) > 1
        assert session.stats().turns == 2


def test_an_exchange_without_commit_leaves_no_trace(engine, store):
    with engine.session("a", store=store) as session:
        session.add(chatter(12))
        before, turns = frozen(session), session.turns()
        first = session.ask("What about my aunt?", commit=False, max_new_tokens=30)
        again = session.ask("What about my aunt?", commit=False, max_new_tokens=30)
        assert first.text == again.text and first.turn is None
        assert same(before, frozen(session)) and session.turns() == turns


def test_asking_an_empty_session_without_commit_leaves_it_empty(engine, store):
    with engine.session("a", store=store) as session:
        session.ask("Hello?", commit=False, max_new_tokens=3)
        assert session.turns() == [] and session.stats().tokens == 0
        session.add("system", "You are kind.")
        assert session.turns()[0].role == "system"


@pytest.mark.parametrize("how", ["cancel", "break", "with", "error"])
def test_a_dropped_reply_leaves_no_trace(engine, store, how):
    with engine.session("a", store=store) as session:
        session.add(chatter(12))
        before = frozen(session)
        expected = session.ask("And now?", commit=False, max_new_tokens=20).text
        drop(session, how)
        assert same(before, frozen(session)) and session.stats().turns == 24
        assert session.ask("And now?", max_new_tokens=20).text == expected


def drop(session, how):
    if how == "cancel":
        stream = session.stream("What about the boat?", max_new_tokens=20, temperature=1.0)
        next(iter(stream))
        stream.cancel()
    elif how == "break":
        for _ in session.stream("What about the boat?", max_new_tokens=20):
            break
    elif how == "with":
        with session.stream("What about the boat?", max_new_tokens=20) as stream:
            stream.next_piece()
    else:
        with pytest.raises(RuntimeError, match="the user's own"):
            for _ in session.stream("What about the boat?", max_new_tokens=20):
                raise RuntimeError("the user's own")


def test_a_cancelled_reply_has_no_reply(engine):
    with engine.session("a") as session:
        stream = session.stream("Hello?", max_new_tokens=5)
        with pytest.raises(SessionError, match="not through"):
            _ = stream.reply
        stream.cancel()
        with pytest.raises(SessionError, match="cancelled"):
            _ = stream.reply


def test_stopping_commits_what_was_said(engine, store):
    with engine.session("a", store=store) as session:
        stream = session.stream("Tell me about the lake.", max_new_tokens=30)
        said = []
        for piece in stream:
            said.append(piece)
            if len(said) == 2:
                stream.stop()
        assert stream.reply.finish_reason == "stopped"
        assert stream.reply.text == "".join(said) == session.turns()[1].text


def test_stopping_when_only_the_turns_end_is_left_to_read_still_reads_it(engine, store):
    with engine.session("b") as straight:
        straight.ask("My name is Ann.", max_new_tokens=4)
        expected = straight.ask("And what is my name?", max_new_tokens=8).text
    with engine.session("a", store=store) as session:
        stream = session.stream("My name is Ann.", max_new_tokens=4)
        while stream._strand is None or stream._strand.request.tokens == 1:
            assert stream.next_piece() is not None
        stream.stop()
        assert session._conversation.memory.n_tokens == session.stats().tokens
        assert session.ask("And what is my name?", max_new_tokens=8).text == expected


def test_turns_that_were_not_read_as_they_are_cannot_be_committed(engine, store):
    with engine.session("a", store=store) as session:
        session.add("user", "Hello.")
        before, tokens = frozen(session), session.stats().tokens
        with (
            pytest.raises(SessionError, match="nothing was committed"),
            session._conversation.transaction() as transaction,
        ):
            transaction.commit([Draft("assistant", "Hi.", [5, 6, 7], [ReadSpan(3, 3)])])
        assert session.stats().turns == 1 and session.stats().tokens == tokens
        assert same(before, frozen(session))
        session.add("assistant", "Hi.")


def test_cancelling_a_reply_just_as_it_starts_is_not_lost(engine):
    with engine.session("a") as session:
        stream = session.stream("Tell me of the lake.", max_new_tokens=4)

        class SetBehindTheLook(threading.Event):
            def is_set(self):
                answer = super().is_set()
                if stream._strand is not None and not answer:
                    stream.give_up()
                return answer

        stream._cancelling = SetBehindTheLook()
        assert stream.next_piece() is None
        assert session.stats().turns == 0


def test_a_reply_can_be_cancelled_from_another_thread(engine):
    with engine.session("a") as session:
        session.add(chatter(2))
        stream = session.stream("Tell me about the lake.", max_new_tokens=200, eos_token_id=())
        reader = threading.Thread(target=lambda: list(stream))
        stream.next_piece()
        reader.start()
        stream.cancel()
        reader.join(timeout=30)
        assert not reader.is_alive() and session.stats().turns == 4


def test_one_session_does_one_exchange_at_a_time(engine):
    with engine.session("a") as session:
        stream = session.stream("Hello?", max_new_tokens=5)
        stream.next_piece()
        with pytest.raises(SessionInUseError, match="in the middle of an exchange"):
            session.ask("And me?")
        stream.cancel()
        session.ask("And me?", max_new_tokens=3)


def test_many_turns_are_one_commit(engine, tmp_path):
    with SQLiteStore(tmp_path / "s") as store, engine.session("a", store=store) as session:
        turns = session.add(chatter(10))
        assert [t.index for t in turns] == list(range(20))
        assert session._conversation.ledger.head == 1


def test_turns_are_given_as_pairs_mappings_or_turns(engine):
    with engine.session("a") as session:
        session.add([("user", "One."), {"role": "assistant", "content": "Two."}])
        session.add(session.turns()[:1])
        assert [t.text for t in session.turns()] == ["One.", "Two.", "One."]


def test_a_system_turn_is_pinned_as_initial_tokens(engine, store):
    long = "You are a helpful clerk of a small town library. " * 3
    with engine.session("a", store=store, system=long) as session:
        n = session.turns()[0].tokens
        assert session._conversation.memory.table.n_init == n > SMALL.n_init
        session.add(chatter(12))
        first, _ = session._conversation.memory.full_layers[0].working_set.initial
        assert first.shape[1] == n
    if store is not None:
        with engine.session("a", store=store, system=long) as session:
            assert session._conversation.memory.table.n_init == n
        with pytest.raises(InputError, match="another system prompt"):
            engine.session("a", store=store, system="You are somebody else.")


@pytest.mark.parametrize(
    ("role", "text", "what"),
    [
        ("user", "", "empty"),
        ("user", "   ", "empty|white"),
        ("robot", "Hi", "unknown role"),
        ("user", "a\ud800b", "surrogate"),
        ("user", "a\0b", "NUL"),
    ],
)
def test_bad_turns_are_refused_and_nothing_is_read(engine, store, role, text, what):
    with engine.session("a", store=store) as session:
        session.add("user", "Hello.")
        before = frozen(session)
        with pytest.raises(InputError, match=what):
            session.add([("assistant", "Fine."), (role, text)])
        if role == "user":
            with pytest.raises(InputError, match=what):
                session.ask(text)
        assert same(before, frozen(session)) and session.stats().turns == 1


def test_turns_and_system_prompts_above_their_limits_are_refused(engine):
    small = Engine(engine.model, engine.tokenizer, SMALL.replace(max_turn_bytes=40, max_init=8))
    with small.session("a") as session:
        with pytest.raises(TurnTooLargeError, match="max_turn_bytes"):
            session.add("user", "x" * 41)
        with pytest.raises(TurnTooLargeError, match="max_init"):
            session.add("system", "You are a very helpful clerk indeed.")
        session.add("user", "ä" * 20)
        assert session.stats().turns == 1


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a\\b", "a\nb", "x" * 257, "  "])
def test_session_ids_with_path_characters_are_refused(engine, bad):
    with pytest.raises(InputError):
        engine.session(bad)


def test_a_closed_session_says_so(engine, store):
    session = engine.session("a", store=store)
    session.close()
    session.close()
    with pytest.raises(SessionClosedError):
        session.ask("Hello?")


def test_a_session_of_another_owner_is_not_found(engine, tmp_path):
    with SQLiteStore(tmp_path / "s") as store:
        with engine.session("a", store=store, owner="ann", metadata={"topic": "x"}) as session:
            session.add("user", "Hello.")
        with pytest.raises(SessionNotFoundError):
            engine.session("a", store=store, owner="bob")
        engine.session("a", store=store, owner="ann").close()
        assert store.sessions("ann")[0].metadata == {"topic": "x"}
        assert store.sessions("bob") == []


def test_sampling_with_a_seed_repeats_and_without_one_goes_on(engine):
    with engine.session("a") as session:
        session.add(chatter(2))
        hot = Sampling(temperature=2.0, max_new_tokens=12, seed=7)
        first = session.ask("Well?", commit=False, sampling=hot).text
        assert session.ask("Well?", commit=False, sampling=hot).text == first
        other = {session.ask("Well?", commit=False, sampling=hot, seed=s).text for s in range(5)}
        assert len(other) > 1


def test_recalled_names_the_turn_that_was_looked_up(engine):
    with engine.session("a") as session:
        session.add("user", "Nothing of note.")
        session.add(chatter(15))
        reply = session.ask("What did you say?", max_new_tokens=6)
        assert reply.recalled
        scores = [r.score for r in reply.recalled]
        assert scores == sorted(scores, reverse=True) and 0 < scores[0] <= 1
        n_far = session.turns()[reply.recalled[0].turn.index]
        assert n_far == reply.recalled[0].turn
        assert reply.usage.from_memory > 0 and reply.usage.refreshes >= 1


def test_stride_one_refreshes_at_every_step(engine):
    eager = Engine(engine.model, engine.tokenizer, SMALL.replace(stride=1))
    with eager.session("a") as session:
        session.add(chatter(8))
        usage = session.ask("What did you say?", max_new_tokens=6).usage
        assert usage.recycled == 0 and usage.refreshes == usage.generated


def test_reading_reports_progress(engine):
    seen = []
    with engine.session("a") as session:
        session.add(chatter(60), progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1 and seen[-1][0] == seen[-1][1]
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_async_twins_do_the_same(engine, store):
    async def talk():
        session = engine.session("a", store=store)
        await session.aadd("user", "The code is 12.")
        reply = await session.aask("What is the code?", max_new_tokens=8)
        pieces = [piece async for piece in session.astream("Again?", max_new_tokens=8)]
        turns = session.turns()
        await session.aclose()
        return reply, pieces, turns

    reply, pieces, turns = asyncio.run(talk())
    assert turns[2].text == reply.text and "".join(pieces) == turns[4].text


def test_cancelling_an_async_reply_drops_the_exchange(engine):
    async def talk():
        session = engine.session("a")
        await session.aadd(chatter(3))
        task = asyncio.create_task(session.aask("Go on.", max_new_tokens=500, eos_token_id=()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return session

    session = asyncio.run(talk())
    assert session.stats().turns == 6
    session.ask("Still there?", max_new_tokens=2)


def test_concurrent_sessions_on_one_engine_equal_each_alone(engine):
    questions = ["Who?", "What about the lake?", "When did we meet at work?"]

    def run(i, out):
        with engine.session(f"s{i}") as session:
            session.add(chatter(10, seed=i))
            out[i] = session.ask(questions[i], max_new_tokens=10).text

    alone, together = {}, {}
    for i in range(3):
        run(i, alone)
    threads = [threading.Thread(target=run, args=(i, together)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_two_engines_share_one_model(engine):
    narrow = Engine(engine.model, engine.tokenizer, SMALL.replace(topk=0))
    with engine.session("a") as one, narrow.session("a") as other:
        one.add(chatter(8))
        other.add(chatter(8))
        assert one._conversation.memory.full_layers[0].fetched > 0
        assert other._conversation.memory.full_layers[0].fetched == 0


def test_memory_config_is_checked_against_the_model(engine):
    with pytest.raises(ValueError, match="trained on 1024 positions"):
        Engine(engine.model, engine.tokenizer, MemoryConfig(n_local=4096))
    with pytest.raises(ValueError, match="ordered"):
        Engine(
            engine.model,
            engine.tokenizer,
            SMALL.replace(far_positions="ordered", topk=200),
        )
    with pytest.raises(ValueError, match="lookup_layers"):
        Engine(engine.model, engine.tokenizer, SMALL.replace(lookup_layers=(9,)))
    with pytest.raises(ValueError, match="scorer"):
        Engine(engine.model, engine.tokenizer, SMALL.replace(scorer="nobody"))


def test_a_reply_longer_than_the_window_looks_up_its_own_beginning(engine, store):
    """Blocks of the exchange under way are attended to, but they are no turns to recall yet."""
    with engine.session("a", store=store) as session:
        reply = session.ask("Tell me everything.", max_new_tokens=150, eos_token_id=())
        assert session.stats().blocks > 3 and reply.recalled == ()
        again = session.ask("And then?", max_new_tokens=120, eos_token_id=())
        assert again.recalled and {r.turn.index for r in again.recalled} <= {0, 1}


def test_a_first_turn_longer_than_the_window_can_be_asked(engine, store):
    with engine.session("a", store=store) as session:
        reply = session.ask("Well, " * 100 + "how are you?", max_new_tokens=3)
        assert reply.recalled == () and session.stats().turns == 2


def test_a_session_whose_system_prompt_is_refused_is_not_left_behind(engine):
    with InMemoryStore() as store:
        with pytest.raises(InputError):
            engine.session("a", store=store, system="")
        assert store.sessions() == []


def test_an_unknown_model_or_device_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no model could be loaded"):
        Engine.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="device 'abacus'"):
        Engine.nano(device="abacus")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(engine):
    tokenizer = copy.deepcopy(engine.tokenizer)
    tokenizer.add_tokens(["one more token"])
    with pytest.raises(ConfigError, match="belongs to the model"):
        Engine(engine.model, tokenizer, SMALL)


@pytest.mark.parametrize("bad", [[("user",)], ("user", "Hi"), [5], ["hi"], [("user", None)], [{}]])
def test_what_is_no_turn_is_refused_with_an_example(engine, bad):
    with (
        engine.session("a") as session,
        pytest.raises(InputError, match="a turn is a role and a text"),
    ):
        session.add(bad)


def test_closing_a_session_cancels_its_reply(engine, store):
    session = engine.session("a", store=store)
    stream = session.stream("Tell me of the lake.", max_new_tokens=50)
    stream.next_piece()
    session.close()
    assert stream.next_piece() is None
    with pytest.raises(SessionError, match="cancelled"):
        _ = stream.reply


@pytest.mark.parametrize("turns", [0, 2])
def test_closing_a_session_while_it_reads_says_so_and_lets_its_memory_go(engine, store, turns):
    session = engine.session("a", store=store)
    session.add(chatter(4)[:turns])
    conversation = session._conversation

    def close(done, total):
        if not session._closed:
            closing = threading.Thread(target=session.close)
            closing.start()
            closing.join(60)

    with pytest.raises(SessionClosedError, match="was closed while it read"):
        session.add("user", "The quick brown fox. " * 40, progress=close)
    assert session._closed and conversation.memory is None
    assert conversation.ledger.n_turns == turns
    if store is not None:
        with engine.session("a", store=store) as again:
            assert again.stats().turns == turns
            again.ask("Well?", max_new_tokens=2)


def test_a_session_that_cannot_be_undone_says_so_and_can_be_opened_again(engine, monkeypatch):
    with InMemoryStore() as store, engine.session("a", store=store) as session:
        session.add(chatter(3))
        memory = session._conversation.memory

        def fail(*args):
            raise MemoryError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(memory, "rewind", fail)
            with pytest.raises(MemoryError):
                session.ask("Well?", commit=False, max_new_tokens=2)
        with pytest.raises(SessionError, match="open it again"):
            session.ask("Well?", max_new_tokens=2)
        session.close()
        with engine.session("a", store=store) as again:
            again.ask("Well?", max_new_tokens=2)


def test_a_model_whose_settings_were_refused_still_runs_without_longmem(engine):
    model = copy.deepcopy(engine.model)
    model.set_attn_implementation("eager")
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    with pytest.raises(ConfigError):
        Engine(model, engine.tokenizer, MemoryConfig(n_local=99_999))
    assert torch.equal(model(ids).logits, before)


def test_host_bytes_bound_the_whole_session(engine):
    bound = Engine(engine.model, engine.tokenizer, SMALL.replace(host_bytes=40_000))
    with InMemoryStore() as store, bound.session("a", store=store) as session:
        session.add(chatter(20))
        assert session.stats().bytes_host <= 40_000
