"""Trains nano with a compressive memory alone (Infini-attention, arXiv 2404.07143) to keep a pass key.

python examples/train_infini.py finetune --work WORK --rule linear  # 550 steps, 15 minutes on a CPU core
python examples/train_infini.py evaluate --work WORK --rule linear  # 32K to 1M tokens
python examples/train_infini.py engine --work WORK --rule linear    # the same through sessions
python examples/train_infini.py report --work WORK --out FILE
python examples/train_infini.py pretrain --work WORK                # before finetune, if at all

Attention sees its own segment of 64 tokens and nothing before it; there are no blocks. Every command
goes on where it stopped. `finetune` ends by writing WORK/RULE/model: a transformers folder with its
gate file, which MemoryConfig.preset("infini") takes. nano has been trained on dialogues, so fine-tuning
starts from it directly; `pretrain` first lets it read dialogues of 16 segments with the memory.

What it takes, found by trying: gates that start at 0.27 (at 0.5 the memory's noise drowned what the model
could do, and 400 steps with ELU + 1 did not leave the plateau), texts that start at 4 segments, a filler
segment that counts as read up to 16,384 times, and answers that lie across the edge of two segments.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from infini_training.batches import Batch, draw_batch
from infini_training.dialogues import draw_dialogues
from infini_training.evaluate import Cell, Examiner
from infini_training.passkey import PassKeyText
from infini_training.run import Rates, Run, load_weights
from infini_training.through_engine import ask, difference, load
from transformers import AutoModelForCausalLM, AutoTokenizer

from longmem import nano
from longmem.bench.machine import commit, machine
from longmem.training import SegmentRecurrent, export

SEGMENT = 64
BATCH_TOKENS = 4096
FEATURE_MAP, SHARPNESS, GATE_START = "learned", 2.0, -1.0
MOST_REPEATS = {"linear": 16_384, "delta_literal": 16_384, "delta": 8}
"""Times a filler segment may count as read: 16,384 segments are a million tokens. Under "delta" each time
would have to be computed."""
DEPTHS = ("start", "middle", "end")
LENGTHS = (32, 128, 256, 512, 1024)
"""In 1,024 tokens."""


def pretrain(args: argparse.Namespace) -> None:
    """Continual pre-training on dialogues of 16 segments, under the linear rule."""
    run = Run(args.work / "pretrained", _model("linear"), Rates(5e-4, 5e-3), args.steps or 50)
    encode = _encode()
    run.train(lambda step: draw_dialogues(encode, random.Random(step), args.rows, args.tokens))


def finetune(args: argparse.Namespace) -> None:
    """Fine-tuning on the pass-key task, from the pre-trained checkpoint."""
    folder, text, steps = args.work / args.rule, PassKeyText(_encode()), args.steps or 550
    recurrent = _model(args.rule)
    if (args.work / "pretrained").exists():
        load_weights(recurrent, args.work / "pretrained" / "checkpoint.pt")
    run = Run(folder, recurrent, Rates(), steps)

    def draw(step: int) -> Batch:
        """Texts grow from 4 segments to 16, and then the stream that one segment stands for."""
        done = step / steps
        tokens = args.tokens // (4 if done < 0.4 else 2 if done < 0.7 else 1)
        most = round(MOST_REPEATS[args.rule] ** min(1.0, max(0.0, done - 0.4) / 0.4))
        return draw_batch(text, random.Random(step), BATCH_TOKENS // tokens, tokens, SEGMENT, most)

    run.train(draw)
    print(export(recurrent, folder / "model", AutoTokenizer.from_pretrained(nano.path())))


def evaluate(args: argparse.Namespace) -> None:
    """Keys right at each length and depth; a depth that is in the result file is skipped."""
    recurrent = _model(args.rule)
    load_weights(recurrent, args.work / args.rule / "checkpoint.pt")
    recurrent.eval()
    file = args.work / args.rule / "evaluation.json"
    done = json.loads(file.read_text()) if file.exists() else []
    for depth in args.depths:
        if sum(row["depth"] == depth for row in done) < len(LENGTHS):
            done = [row for row in done if row["depth"] != depth]
            started = time.perf_counter()
            examiner = Examiner(recurrent, PassKeyText(_encode()), seed=args.seed)
            for cell in examiner.measure(depth, [1024 * n for n in LENGTHS], args.samples):
                seconds = round(time.perf_counter() - started)
                done.append({"rule": args.rule, **asdict(cell), "seconds": seconds})
                print(json.dumps(done[-1]), flush=True)
                file.write_text(json.dumps(done, indent=1))


def engine(args: argparse.Namespace) -> None:
    """The exported model in an `Engine`: equal logits, and the pass key through a session."""
    recurrent, folder = _model(args.rule), args.work / args.rule / "model"
    load_weights(recurrent, args.work / args.rule / "checkpoint.pt")
    text, rng, loaded = PassKeyText(_encode()), random.Random(args.seed), load(recurrent, folder)
    ids = text.haystack(3, text.needle(text.key(rng)), 200, 2000) + text.plain.asking
    apart = difference(loaded, recurrent, ids, span=100)
    rows: list[dict[str, object]] = [{"rule": args.rule, "logits_apart": apart, "tokens": len(ids)}]
    print(rows[0], flush=True)
    file = args.work / args.rule / "engine.json"
    for length, samples in zip(LENGTHS, args.samples, strict=True):
        for depth in args.depths:
            for _ in range(samples):
                started = time.perf_counter()
                found, tokens = ask(
                    loaded, text, loaded.tokenizer.decode, depth, 1024 * length, rng
                )
                seconds = round(time.perf_counter() - started)
                cell = Cell(tokens, depth, 1, int(found))
                rows.append({"rule": args.rule, **asdict(cell), "seconds": seconds})
                print(json.dumps(rows[-1]), flush=True)
                file.write_text(json.dumps(rows, indent=1))


def report(args: argparse.Namespace) -> None:
    """What was measured under every rule, as one file."""
    cells: list[object] = []
    sessions: list[object] = []
    steps = {}
    for rule in MOST_REPEATS:
        folder = args.work / rule
        for name, rows in (("evaluation.json", cells), ("engine.json", sessions)):
            if (folder / name).exists():
                rows += json.loads((folder / name).read_text())
        if (folder / "log.jsonl").exists():
            steps[rule] = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    parts = {
        "command": "examples/train_infini.py finetune, evaluate, engine",
        "model": "nano",
        "segment": SEGMENT,
        "feature_map": FEATURE_MAP,
        "steps": steps,
        "passkey": cells,
        "through_sessions": sessions,
        "machine": machine(),
        "commit": commit(),
    }
    args.out.write_text(json.dumps(parts, indent=1) + "\n")


def _model(rule: str) -> SegmentRecurrent:
    model = AutoModelForCausalLM.from_pretrained(nano.path(), dtype=torch.float32)
    recurrent = SegmentRecurrent(
        model, segment=SEGMENT, rule=rule, feature_map=FEATURE_MAP, gate_start=GATE_START
    )
    for weight in recurrent.feature_weights:
        weight.data.mul_(SHARPNESS)
    return recurrent


def _encode() -> Callable[[str], list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(nano.path())
    return partial(tokenizer.encode, add_special_tokens=False)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


COMMANDS = {
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "engine": engine,
    "report": report,
}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--rule", choices=list(MOST_REPEATS), default="linear")
    parser.add_argument("--steps", type=int, help="default 50 to pretrain, 550 to finetune")
    parser.add_argument("--rows", type=int, default=4, help="sequences of a batch")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument(
        "--samples",
        type=_numbers,
        default=[20, 10, 5, 5, 5],
        help="keys asked for at 32K, 128K, 256K, 512K and 1M tokens, at each depth",
    )
    parser.add_argument("--depths", nargs="+", choices=DEPTHS, default=DEPTHS)
    parser.add_argument("--out", type=Path, help="file that report writes")
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation")
    args = parser.parse_args()
    COMMANDS[args.command](args)


if __name__ == "__main__":
    sys.exit(main())
