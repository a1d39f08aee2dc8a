"""`Engine`: one loaded model that reads for many sessions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from longmem.attention import attach, forward
from longmem.chat import ChatFormat
from longmem.config import MemoryConfig
from longmem.errors import ChatFormatError, ConfigError
from longmem.fair_lock import FairLock
from longmem.feeding import Fed, Feed, Segment, passes
from longmem.fingerprint import fingerprint
from longmem.memory import ForwardPass, ReadSpan, SessionMemory
from longmem.retrieval import get_scorer

if TYPE_CHECKING:
    from longmem.session import Session
    from longmem.store import Store

Progress = Callable[[int, int], None]
"""Called with (tokens read, tokens to read) after each forward pass."""


@dataclass(eq=False)
class Engine:
    """One model, one tokenizer, one `MemoryConfig`; runs one forward pass at a time.

    Safe to use from several threads: passes queue first come, first served.

    Args:
        model: a Hugging Face decoder with rotary attention. The engine takes over its attention.
        tokenizer: its tokenizer.
        memory: settings; default `MemoryConfig()` with the window cut to the trained positions.
        segment_tokens: most tokens of one forward pass when reading; only a matter of speed.

    Raises:
        UnsupportedModelError: the model keeps state that longmem cannot hold.
        ConfigError: the memory settings do not fit the model.
        ChatFormatError: the tokenizer's template cannot be rendered turn by turn.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: MemoryConfig | None = None
    segment_tokens: int = 1024
    config: MemoryConfig = field(init=False)

    def __post_init__(self) -> None:
        self.model.eval()
        _check_tokenizer(self.model, self.tokenizer)
        self.info = attach(self.model)
        self.config = self.memory or _default_memory(self.info.max_positions)
        _check_fit(self.config, self.info.max_positions, len(self.info.layers))
        self.chat = ChatFormat.from_tokenizer(
            self.tokenizer, keep_reasoning=self.config.keep_reasoning
        )
        if not self.chat.reply_header_ids():
            raise ChatFormatError(
                "this chat template has no text that asks for a reply, which the first look-up of a "
                "reply needs; give the tokenizer a template with a generation prompt"
            )
        self.device = self.model.get_input_embeddings().weight.device
        self.tokens_read = 0
        """Tokens fed to the model so far, over all sessions."""
        self._turnstile = FairLock()
        self._fingerprint: Mapping[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        memory: MemoryConfig | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Engine:
        """Load a model and its tokenizer from a folder or the Hugging Face hub.

        Args:
            name_or_path: as for ``AutoModelForCausalLM.from_pretrained``.
            memory: settings of the memory.
            device: default "cuda" where there is one, else "cpu".
            dtype: default float32 on the CPU, else the checkpoint's.
            options: passed on to ``AutoModelForCausalLM.from_pretrained``.

        Raises:
            ConfigError: no model could be loaded from there.
        """
        device = _device(device)
        dtype = dtype or (torch.float32 if device.type == "cpu" else "auto")  # type: ignore[assignment]  # "auto" is transformers' word for the checkpoint's dtype
        try:
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
            model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"no model could be loaded from {os.fspath(name_or_path)!r}: {error}\n"
                "Give a folder with config.json, weights and tokenizer, or the name of a causal "
                "language model on the Hugging Face hub"
            ) from error
        if "device_map" not in options:
            model = model.to(device)
        return cls(model, tokenizer, memory)

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
        return SessionMemory(self.info.layers, self.config, n_init, journal=journal)

    def forward(self, feeds: Sequence[Feed]) -> list[Fed]:
        """One forward pass over several sessions, packed; none of them sees another.

        Waits for its turn. If the pass fails, memories have to be rewound by the caller.
        """
        with self._turnstile:
            readings = [f.memory.prepare(f.spans, f.turn_starts, trace=f.trace) for f in feeds]
            ids = torch.tensor([[i for f in feeds for i in f.ids]], device=self.device)
            lengths = torch.tensor([len(f.ids) for f in feeds])
            last = (lengths.cumsum(0) - 1).to(self.device)
            run = ForwardPass([(f.memory, r) for f, r in zip(feeds, readings, strict=True)])
            logits = forward(self.model, ids, run, last)
            run.finish()
            self.tokens_read += ids.shape[1]
        return [Fed(row, reading) for row, reading in zip(logits, readings, strict=True)]

    def read(
        self,
        memory: SessionMemory,
        segments: Sequence[Segment],
        progress: Progress | None = None,
        trace: bool = False,
    ) -> list[Fed]:
        """Read turns of any length in as many passes as it takes; returns one `Fed` per pass."""
        total = sum(len(s.ids) for s in segments)
        done, results = 0, []
        for feed in passes(memory, segments, self.segment_tokens, trace):
            results += self.forward([feed])
            done += len(feed.ids)
            if progress is not None:
                progress(done, total)
        return results

    def spans(self, n_tokens: int) -> list[ReadSpan]:
        """The look-up spans of a turn of `n_tokens` read at once."""
        size = self.config.lookup_span
        return [
            ReadSpan(min(size, n_tokens - at), min(size, n_tokens - at))
            for at in range(0, n_tokens, size)
        ]


def _device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {str(name)!r} cannot be used: {reason}; choose another, for instance "
            'device="cpu"'
        ) from error
    return device


def _default_memory(max_positions: int) -> MemoryConfig:
    """`MemoryConfig()` for models whose trained positions are fewer than its window."""
    default = MemoryConfig()
    n_local = min(default.n_local, max(1, max_positions // 2))
    return default.replace(
        n_local=n_local,
        n_init=min(default.n_init, n_local),
        block_size=min(default.block_size, max(1, n_local // 4)),
    )


def _check_fit(config: MemoryConfig, max_positions: int, n_layers: int) -> None:
    if config.n_local > max_positions:
        raise ConfigError(
            f"n_local is {config.n_local}, but the model was trained on {max_positions} positions; "
            f"choose n_local <= {max_positions}"
        )
    reach = config.n_local + max(config.topk - 1, 0) * config.block_size
    if config.far_positions == "ordered" and reach > max_positions:
        raise ConfigError(
            f'far_positions="ordered" needs n_local + (topk - 1) * block_size = {reach} positions, '
            f"but the model was trained on {max_positions}; lower topk, block_size or n_local"
        )
    if config.lookup_layers != "all" and config.lookup_layers[-1] >= n_layers:
        raise ConfigError(
            f"lookup_layers names layer {config.lookup_layers[-1]}, but the model has layers "
            f"0 .. {n_layers - 1}"
        )
    get_scorer(config.scorer)


def _check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer of another model mostly shows by ids the embedding does not have."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's embedding only {rows} rows; "
            "load the tokenizer that belongs to the model"
        )
