"""Trains nano, the bundled model: tokenizer, weights and the other files under longmem/nano/.

python examples/train_nano.py --work WORK            # trains and exports, about an hour
python examples/train_nano.py --work WORK --resume   # goes on where the last run stopped
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from nano_training.batches import TOKENS, batches
from nano_training.finding import OTHER_TURNS
from nano_training.model import Geometry, Nano, Rotary
from nano_training.muon import Muon
from nano_training.tokenizer import train_tokenizer
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

TARGET = Path(__file__).resolve().parent.parent / "longmem" / "nano"
MUON_LR, ADAM_LR, WARM_UP, FINDING_WEIGHT = 0.02, 3e-3, 50, 0.4


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Nano's shape."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )


def draw_geometry(rng: random.Random, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Per row: some plain attention, the rest a window and far keys, constant or ordered."""

    def column(values: list[int]) -> torch.Tensor:
        return torch.tensor(values)[:, None]

    low, high = min(64, length // 4), min(256, length * 5 // 8)
    plain = [rng.random() < 0.15 for _ in range(rows)]
    return {
        "n_local": column([length if p else rng.randint(low, high) for p in plain]),
        "n_init": column([rng.randint(1, 16) for _ in range(rows)]),
        "ordered": column([int(rng.random() < 0.3) for _ in range(rows)]).bool(),
        "others": column([int(not p and rng.random() < 0.8) for p in plain]).bool(),
        "other_at": torch.tensor(
            [[rng.randrange(length // 2) for _ in range(OTHER_TURNS)] for _ in range(rows)]
        ),
    }


def losses(
    model: Nano, rotary: Rotary, batch: dict[str, torch.Tensor], shape: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The loss of the scored tokens, the finding loss of the layers that look up, and the log's."""
    geometry = Geometry(rotary, batch["end"], batch["keep"], shape)
    hidden, found = model(geometry, batch)
    hidden = hidden.reshape(TOKENS, -1)[batch["scored"]]
    target = batch["ids"][:, 1:].reshape(-1)[batch["scored"]]
    logits = hidden @ model.embed_tokens.weight.T
    each = F.cross_entropy(logits, target, reduction="none")
    value = (batch["scored_answer"] > 0).float()
    return {
        "loss": (each * batch["scored_weight"]).sum() / batch["scored_weight"].sum(),
        "finding": torch.stack([layer.loss for layer in found]).mean(),
        "found": torch.stack([layer.share for layer in found]),
        "value_loss": (each * value).sum() / value.sum(),
        "wrong": torch.zeros(len(target)).index_add(
            0, batch["scored_answer"], (logits.argmax(-1) != target).float() * value
        ),
        "answers": torch.zeros(len(target)).index_add(0, batch["scored_answer"], value),
    }


def export(
    model: Nano, config: Qwen3Config, tokenizer: PreTrainedTokenizerFast, target: Path
) -> None:
    """Writes the files that `from_pretrained` reads; each one is replaced at once."""
    new = target / ".new"
    new.mkdir(parents=True, exist_ok=True)
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(new)
    GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id, do_sample=False
    ).save_pretrained(new)
    tokenizer.save_pretrained(new)
    weights = {
        f"model.{name}": p.detach().bfloat16().contiguous()
        for name, p in model.state_dict().items()
    }
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    for file in new.iterdir():
        file.chmod(0o644)
        os.replace(file, target / file.name)
    new.rmdir()


def parse_schedule(text: str) -> list[tuple[int, int]]:
    """ "128:600,256:500" -> [(length, last step), ...] with steps summed up."""
    stages, total = [], 0
    for part in text.split(","):
        length, steps = map(int, part.split(":"))
        total += steps
        stages.append((length, total))
    return stages


class Trainer:
    """The run: model, optimisers, step; everything needed to go on is in one checkpoint file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = self._tokenizer()
        self.config = make_config(self.tokenizer)
        torch.manual_seed(args.seed)
        self.model, self.rotary, self.step = Nano(self.config), Rotary(self.config), 0
        hidden = [p for p in self.model.layers.parameters() if p.dim() == 2]
        rest = [p for p in self.model.parameters() if all(p is not h for h in hidden)]
        self.optimizers = [
            Muon(hidden, lr=MUON_LR),
            torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.stages = parse_schedule(args.schedule)
        if args.resume:
            self._load(self.work / "checkpoint.pt")

    def run(self) -> None:
        """All stages that are left."""
        for length, last in self.stages:
            if self.step >= last:
                continue
            compiled = torch.compile(losses, dynamic=False)
            source = batches(
                str(self.work / "tokenizer" / "tokenizer.json"),
                length,
                self.args.seed * 1000 + self.step,
                self.args.tasks,
            )
            while self.step < last:
                self._step(compiled, length, next(source))
            source.close()
        self._save()
        export(self.model, self.config, self.tokenizer, Path(self.args.target))

    def _step(self, compiled: Any, length: int, arrays: dict[str, Any]) -> None:
        started = time.perf_counter()
        batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
        rng = random.Random(self.step)
        out = compiled(self.model, self.rotary, batch, draw_geometry(rng, TOKENS // length, length))
        (out["loss"] + self.args.finding_weight * out["finding"]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._set_rates()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._report(out, length, time.perf_counter() - started)

    def _set_rates(self) -> None:
        total, decay = self.stages[-1][1], self.args.decay
        warm = (self.step + 1 - self.args.warm_from) / WARM_UP
        factor = self.args.peak * min(1.0, warm, (total - self.step) / decay)
        for optimizer, rate in zip(self.optimizers, (MUON_LR, ADAM_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def _report(self, out: dict[str, torch.Tensor], length: int, seconds: float) -> None:
        if self.step % 10 == 0:
            asked = out["answers"][1:] > 0
            right = (asked & (out["wrong"][1:] == 0)).sum() / asked.sum()
            line = {
                "step": self.step,
                "length": length,
                "loss": out["loss"].item(),
                "value": out["value_loss"].item(),
                "right": right.item(),
                "finding": out["finding"].item(),
                "found": [round(x, 3) for x in out["found"].tolist()],
                "tokens_per_s": round(TOKENS / seconds),
                "at": time.strftime("%H:%M:%S"),
            }
            with (self.work / "log.jsonl").open("a") as log:
                log.write(
                    json.dumps(
                        {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
                    )
                    + "\n"
                )
        if self.step % self.args.save_every == 0:
            self._save()
            if not self.args.no_export:
                export(self.model, self.config, self.tokenizer, Path(self.args.target))

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self.work / "tokenizer"
        if not folder.exists():
            train_tokenizer().save_pretrained(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    def _save(self) -> None:
        new = self.work / "checkpoint.new"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "step": self.step,
            },
            new,
        )
        os.replace(new, self.work / "checkpoint.pt")
        if self.step % 500 == 0:
            shutil.copy(self.work / "checkpoint.pt", self.work / f"checkpoint-{self.step}.pt")

    def _load(self, file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="folder for tokenizer, checkpoints and log")
    parser.add_argument("--target", default=str(TARGET), help="folder that receives the model")
    parser.add_argument(
        "--schedule",
        default="128:300,256:1600",
        help="length:steps, comma-separated",
    )
    parser.add_argument(
        "--decay",
        type=int,
        default=550,
        help="last steps, in which the learning rates fall to zero",
    )
    parser.add_argument(
        "--finding-weight", type=float, default=FINDING_WEIGHT, help="weight of the finding loss"
    )
    parser.add_argument("--peak", type=float, default=1.0, help="factor of all learning rates")
    parser.add_argument(
        "--warm-from", type=int, default=0, help="step at which the learning rates start from zero"
    )
    parser.add_argument(
        "--tasks", type=float, default=0.5, help="share of rows that are tasks of the bench"
    )
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--no-export", action="store_true")
    Trainer(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
