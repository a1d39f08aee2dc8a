"""`Engine`: one loaded model that reads for many sessions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from longmem.attention import attach, implementations
from longmem.config import MemoryConfig
from longmem.errors import ConfigError
from longmem.feeding import Fed, Feed, Segment, Together, Unread, check_feeds
from longmem.fingerprint import fingerprint
from longmem.fit import (
    chat_format,
    check_fit,
    check_tokenizer,
    check_weights,
    default_memory,
    usable_device,
)
from longmem.gate_file import load_gates, segment_of
from longmem.graphs import StepGraphs, Wanted
from longmem.memory import Gates, ReadSpan, Scratch, SessionMemory
from longmem.model_devices import input_device
from longmem.packing import Outcome, run_packed
from longmem.scheduler import Scheduler, weakly
from longmem.strand import Steps, Strand
from longmem.workers import Workers

if TYPE_CHECKING:
    from longmem.session import Session
    from longmem.store import Store

_SOURCE_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
Progress = Callable[[int, int], None]
"""Called with (tokens read, tokens to read) after each forward pass."""


@dataclass(eq=False)
class Engine:
    """One model, one tokenizer, one `MemoryConfig`; runs one forward pass at a time.

    Safe to use from several threads: sessions that are in use at the same time are read in packed
    passes, and each gets what it would get alone.

    Args:
        model: a Hugging Face decoder with rotary attention. The engine takes over its attention.
        tokenizer: its tokenizer.
        memory: settings; default `MemoryConfig()`, with a window of at most half the trained positions.
        segment_tokens: most tokens of one forward pass when one session reads; only a matter of speed.
        pass_tokens: most tokens of one forward pass when several sessions are active; a reply waits
            for no more than one such pass, however long a text another session reads.
        graphs: whether decode steps are launched as CUDA graphs, those with a look-up where that needs
            no host in between (`longmem.graphs`); default: on CUDA, where kernels serve the model.
            True: wherever they serve it, without a graph on the CPU.
            "compiled": torch also compiles what these steps do besides attention, once for each number
            of sessions rounded up to a power of two; that takes a minute each for a large model.

    Raises:
        UnsupportedModelError: the model keeps state that longmem cannot hold, or its weights hold NaN.
        ConfigError: the memory settings do not fit the model, or the gate file belongs to another.
        ChatFormatError: the tokenizer's template cannot be rendered turn by turn.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: InitVar[MemoryConfig | None] = None
    segment_tokens: int = 1024
    pass_tokens: int = 512
    graphs: Any = None
    """What was asked for; then the engine's `longmem.graphs.StepGraphs`, or None: it has none."""
    config: MemoryConfig = field(init=False)

    def __post_init__(self, memory: MemoryConfig | None) -> None:
        for name in ("segment_tokens", "pass_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; choose 1 or more")
        check_tokenizer(self.model, self.tokenizer)
        check_weights(self.model)
        before = implementations(self.model)
        self.info = attach(self.model)
        try:
            self.config = memory or default_memory(self.info.max_positions)
            check_fit(self.config, self.info)
            self.chat = chat_format(self.tokenizer, self.config)
            self.gates = self._load_gates()
            """Of the compressive memory; None leaves it closed."""
        except BaseException:
            self.model.set_attn_implementation(before)  # it stays usable without longmem
            raise
        self.model.eval()
        self.device = input_device(self.model)
        self.tokens_read = 0
        """Tokens fed to the model so far, over all sessions."""
        self.scheduler = Scheduler(weakly(self.run_pass), self.pass_tokens, self.segment_tokens)
        """Packs what sessions read into passes; see its `passes` and `feeds`."""
        self.workers = Workers()
        self.graphs = StepGraphs.of(self.model, self.info.layers, self.graphs)
        self._scratch = {False: Scratch(), True: Scratch()}
        self._fingerprint: Mapping[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        memory: MemoryConfig | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        pass_tokens: int = 512,
        graphs: Wanted = None,
        **options: Any,
    ) -> Engine:
        """Load a model and its tokenizer from a folder or the Hugging Face hub.

        Args:
            name_or_path: as for ``AutoModelForCausalLM.from_pretrained``.
            memory: settings of the memory.
            device: default "cuda" where there is one, else "cpu".
            dtype: default float32 on the CPU, else the checkpoint's.
            pass_tokens, graphs: see `Engine`.
            options: passed on to ``AutoModelForCausalLM.from_pretrained``; those about where to load
                from (``revision``, ``token`` ...) to the tokenizer, too.

        Raises:
            ConfigError: no model could be loaded from there.
        """
        device = usable_device(device)
        source = {name: options[name] for name in _SOURCE_OPTIONS if name in options}
        dtype = dtype or (torch.float32 if device.type == "cpu" else "auto")  # type: ignore[assignment]  # "auto" is transformers' word for the checkpoint's dtype
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **source)
            model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, **options)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"no model could be loaded from {os.fspath(name_or_path)!r}: {error}\n"
                "Give a folder with config.json, weights and tokenizer, or the name of a causal "
                "language model on the Hugging Face hub"
            ) from error
        if "device_map" not in options:
            model = model.to(device)
        return cls(model, tokenizer, memory, pass_tokens=pass_tokens, graphs=graphs)

    @classmethod
    def nano(cls, memory: MemoryConfig | None = None, **options: Any) -> Engine:
        """The bundled model: small enough for any CPU, trained to answer from what it was told."""
        from longmem import nano

        return cls.from_pretrained(nano.path(), memory or nano.memory(), **options)

    def session(
        self,
        id: str = "default",
        *,
        store: Store | None = None,
        system: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        create: bool = True,
        rebuild: bool = False,
        progress: Progress | None = None,
    ) -> Session:
        """Open a session, or resume it where it stood; see `longmem.Session`."""
        from longmem.session import Session

        return Session(
            self,
            id,
            store=store,
            system=system,
            owner=owner,
            metadata=metadata,
            tools=tools,
            create=create,
            rebuild=rebuild,
            progress=progress,
        )

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What stored keys and values depend on; computed once, reading every weight tensor."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(
                self.model, self.tokenizer, self.config, self.info.layers, self.chat.identity
            )
        return self._fingerprint

    def new_memory(self, n_init: int | None = None, *, journal: bool = False) -> SessionMemory:
        """An empty memory for one session.

        Args:
            n_init: its initial tokens; default config.n_init.
            journal: keep the K/V of new tokens for `SessionMemory.export`.
        """
        n_init = self.config.n_init if n_init is None else n_init
        return SessionMemory(
            self.info.layers, self.config, n_init, gates=self.gates, journal=journal
        )

    def forward(self, feeds: Sequence[Feed]) -> list[Fed]:
        """One forward pass over several sessions, packed; none of them sees another.

        Waits for its turn, and may share the pass with other sessions. If a feed fails, memories have
        to be rewound by the caller.

        Raises:
            ValueError: spans do not cover the ids, an id is unknown, or a memory is fed twice.
        """
        check_feeds(feeds, self.model.get_input_embeddings().num_embeddings)

        def steps(bring: Callable[[Sequence[Fed]], None]) -> Steps:
            bring((yield Together(feeds)))

        (fed,) = self.scheduler.run(Strand(steps))
        return list(fed)

    def run_pass(self, feeds: Sequence[Feed]) -> Sequence[Outcome]:
        """What `scheduler` has done by the thread that leads: one pass over what it chose."""
        surprise = self.config.block_boundaries == "surprise"
        scratch = self._scratch[
            torch.is_inference_mode_enabled()
        ]  # its tensors are good for no other
        outcomes = run_packed(self.model, feeds, surprise, scratch, self.graphs)
        self.tokens_read += sum(len(feed.ids) for feed in feeds)
        return outcomes

    def read(
        self,
        memory: SessionMemory,
        segments: Sequence[Segment],
        progress: Progress | None = None,
    ) -> None:
        """Read turns of any length, in as many passes as it takes.

        Args:
            memory: the session's memory.
            segments: the turns.
            progress: called with (tokens read, tokens to read) after each pass.
        """
        total, done = sum(len(s.ids) for s in segments), 0
        for tokens in self.scheduler.run(Strand(partial(self.reading, memory, segments))):
            done += tokens
            if progress is not None:
                progress(done, total)

    def reading(
        self, memory: SessionMemory, segments: Sequence[Segment], bring: Callable[[int], None]
    ) -> Steps:
        """The steps of `read`, as a part of a strand; brings the tokens of each pass."""
        unread = Unread(memory, segments, self._pass_limit)
        while left := unread.tokens:
            yield unread
            bring(left - unread.tokens)

    def spans(self, n_tokens: int) -> list[ReadSpan]:
        """The look-up spans of a turn of `n_tokens` read at once."""
        size = self.config.lookup_span
        if self.config.block_boundaries == "surprise":
            size = min(size, self._pass_limit)
        return [
            ReadSpan(min(size, n_tokens - at), min(size, n_tokens - at))
            for at in range(0, n_tokens, size)
        ]

    @property
    def _pass_limit(self) -> int:
        """Most tokens of a pass: where surprise ends blocks, no token may be read and leave the window
        in one pass, or what closes would depend on how the stream was cut."""
        config = self.config
        if config.block_boundaries == "surprise":
            return config.n_local - config.block_size
        return self.segment_tokens

    def _load_gates(self) -> Gates | None:
        config = self.config.compressive
        if config is None or config.gates is None:
            return None
        segment = segment_of(self.config)
        return load_gates(config.gates, self.model, self.info.layers, config, segment)
