"""`longmem chat`: talk to a session in the terminal, or pipe turns into it."""

from __future__ import annotations

import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.common import (
    NANO,
    Device,
    Model,
    StorePath,
    default_store,
    load_engine,
    open_store,
    readable_bytes,
)
from longmem.errors import InputError

if TYPE_CHECKING:
    from longmem import Reply, ReplyStream, Session, Store

_HELP = """\
/recall   the turns of long ago that were looked up for the last reply
/stats    how much this session holds, and where
/help     this
/quit     leave (so do Ctrl-D, and Ctrl-C between replies)
Ctrl-C    end the reply here and keep what was said
//text    say something that starts with a slash"""

_SHOWN = 10
_WIDTH = 60


def chat(
    model: Model = NANO,
    session: Annotated[
        str, typer.Option("--session", "-s", help="Begin this session, or go on with it.")
    ] = "default",
    store: StorePath = None,
    system: Annotated[str | None, typer.Option(help="System prompt of a new session.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Read the stored turns again, under this model.")
    ] = False,
    device: Device = None,
) -> None:
    """Talk; go on another day with the same --session. Lines from a pipe are turns, too."""
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    with open_store(store) as opened:  # first: a store in use is known before a model is loaded
        engine = load_engine(model, device)
        with (
            _nothing_left_of_nothing(opened, session),
            engine.session(
                session, store=opened, system=system, metadata={"model": model}, rebuild=rebuild
            ) as talk,
        ):
            console = Chat(talk, options, interactive=sys.stdin.isatty())
            console.greet(f"{store or default_store()}", model, "all" if rebuild else "none")
            refused = console.run()
    if refused and not console.interactive:
        raise typer.Exit(1)


@contextmanager
def _nothing_left_of_nothing(store: Store, id: str) -> Iterator[None]:
    """A new session in which nothing was said, perhaps for a typing error in its id, goes again."""
    before = {info.id for info in store.sessions()}
    try:
        yield
    finally:
        for info in store.sessions():
            if info.id == id and id not in before and not info.n_turns:
                store.delete(id)


class Chat:
    """The conversation at one terminal.

    Args:
        session: that is talked to.
        options: of `Session.stream`.
        interactive: a person types; else lines come from a pipe and only replies are printed.
    """

    def __init__(self, session: Session, options: dict[str, Any], *, interactive: bool) -> None:
        self._session, self._options = session, options
        self.interactive = interactive
        self._last: Reply | None = None

    def greet(self, store: str, model: str, reread: str) -> None:
        """Where the session lives, how much of it there is, and how much of that was read again."""
        stats = self._session.stats()
        self._note(f"session {self._session.id} in {store}")
        if stats.turns:
            size = f"{stats.turns:,} turns, {stats.tokens:,} tokens"
            self._note(f"resumed: {size}, {reread} read again")
        if model == NANO:
            self._note(
                "nano is tiny: it remembers facts you tell it and answers questions about them;\n"
                "it cannot chat. For that: longmem chat --model NAME"
            )
        self._note("/help lists the commands")

    def run(self) -> int:
        """Talk until the input ends; returns how many lines were refused."""
        refused = 0
        try:
            for line in self._lines():
                try:
                    if not self._say(line):
                        break
                except InputError as error:
                    refused += 1
                    print(f"longmem: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            self._note("")
        return refused

    def _say(self, line: str) -> bool:
        """One line from the user; False ends the chat."""
        if line.startswith("/") and not line.startswith("//"):
            return self._command(line.strip())
        if line.strip():
            with _interruptible() as pressed:
                self._reply(line.removeprefix("/"), pressed)
        return True

    def _reply(self, text: str, pressed: threading.Event) -> None:
        with self._session.stream(text, **self._options) as stream:
            printed = _show(stream, pressed)
        self._last = stream.reply
        print(self._last.text.removeprefix(printed), flush=True)

    def _command(self, line: str) -> bool:
        if line == "/quit":
            return False
        commands: dict[str, Callable[[], str]] = {
            "/recall": self._recall,
            "/stats": self._stats,
            "/help": lambda: _HELP,
        }
        if line not in commands:
            raise InputError(f"there is no command {line}; /help lists them, //text says /text")
        print(commands[line]())
        return True

    def _recall(self) -> str:
        """The turns looked up for the last reply, the best first."""
        if self._last is None:
            return "No reply yet."
        if not self._last.recalled:
            return "Nothing was looked up: all of this session is still in the window."
        lines = ["score  turn"]
        for each in self._last.recalled[:_SHOWN]:
            turn, text = each.turn, " ".join(each.turn.text.split())
            short = text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
            lines.append(f" {each.score:.2f}  {turn.index:>5,}  {turn.role:<9}  {short}")
        if (more := len(self._last.recalled) - _SHOWN) > 0:
            lines.append(f"and {more} more")
        return "\n".join(lines)

    def _stats(self) -> str:
        """How much there is and where, and what the last reply looked up."""
        stats = self._session.stats()
        held = (
            f"{stats.tokens:,} tokens in {stats.turns:,} turns, {stats.blocks:,} blocks, "
            f"{stats.window:,} tokens in the window\n"
            f"{readable_bytes(stats.bytes_device)} on the device, "
            f"{readable_bytes(stats.bytes_host)} in host memory, "
            f"{readable_bytes(stats.bytes_disk)} on disk"
        )
        if self._last is None:
            return held
        usage = self._last.usage
        return (
            f"{held}\nlast reply: {usage.generated:,} tokens, {usage.refreshes:,} refreshes and "
            f"{usage.recycled:,} recycled steps, {usage.lookups:,} look-ups of layers "
            f"({usage.lookups_saved:,} saved)"
        )

    def _lines(self) -> Iterator[str]:
        """What is typed or piped in, line by line."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            # What is no UTF-8 comes as half surrogates, which the session refuses by name.
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        if not self.interactive:
            yield from (line.rstrip("\r\n") for line in sys.stdin)
            return
        import readline  # noqa: F401  gives input() history and line editing

        while True:
            try:
                yield input("\n> ")
            except EOFError:
                self._note("")
                return

    def _note(self, text: str) -> None:
        """For people only: a pipe gets nothing but replies."""
        if self.interactive:
            print(text)


def _show(stream: ReplyStream, pressed: threading.Event) -> str:
    """Print a reply while it comes; returns what was printed. Ctrl-C ends it, and keeps it."""
    printed = ""
    for piece in stream:
        print(piece, end="", flush=True)
        printed += piece
        if pressed.is_set():
            stream.stop()
    return printed


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Within, the first Ctrl-C only sets the event; the second one interrupts as usual.

    An exception in the middle of a reply would drop the exchange.
    """
    pressed = threading.Event()

    def press(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
