"""Trains nano with a compressive memory alone (Infini-attention, arXiv 2404.07143) to keep a pass key.

python examples/train_infini.py pretrain --work WORK                # nano reads long dialogues
python examples/train_infini.py finetune --work WORK --rule linear  # then the pass-key task
python examples/train_infini.py evaluate --work WORK --rule linear  # 32K to 1M tokens

Attention sees its own segment of 128 tokens and nothing before it; there are no blocks. Every command
goes on where it stopped. `finetune` ends by writing WORK/RULE/model: a transformers folder with its
gate file, which MemoryConfig.preset("infini") takes.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
from infini_training.dialogues import draw_dialogues
from infini_training.passkey import PassKeyText, draw_batch
from infini_training.run import Rates, Run, load_weights
from nano_training.batches import Encoder
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from longmem import nano
from longmem.training import SegmentRecurrent, export

SEGMENT = 128
RULES = ("linear", "delta")


def pretrain(args: argparse.Namespace) -> None:
    """Continual pre-training on dialogues of 16 segments, under the linear rule."""
    encoder = Encoder(Tokenizer.from_file(str(nano.path() / "tokenizer.json")))
    run = Run(args.work / "pretrained", _model("linear"), Rates(5e-4, 5e-3), args.steps or 120)
    run.train(lambda step: draw_dialogues(encoder, random.Random(step), args.rows, args.tokens))


def finetune(args: argparse.Namespace) -> None:
    """Fine-tuning on the pass-key task, from the pre-trained checkpoint."""
    folder, tokenizer = args.work / args.rule, AutoTokenizer.from_pretrained(nano.path())
    recurrent, text, steps = _model(args.rule), PassKeyText(tokenizer), args.steps or 400
    load_weights(recurrent, args.work / "pretrained" / "checkpoint.pt")
    run = Run(folder, recurrent, Rates(), steps)

    def draw(step: int):
        """The stream that one segment stands for grows to a million tokens over half of the run."""
        most = round(args.most_repeats ** min(1.0, 2 * step / steps))
        rng = random.Random(step)
        return draw_batch(text, rng, args.rows, args.tokens, SEGMENT, most)

    run.train(draw)
    print(export(recurrent, folder / "model", tokenizer))


def _model(rule: str) -> SegmentRecurrent:
    model = AutoModelForCausalLM.from_pretrained(nano.path(), dtype=torch.float32)
    return SegmentRecurrent(model, segment=SEGMENT, rule=rule)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["pretrain", "finetune"])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--rule", choices=RULES, default="linear")
    parser.add_argument("--steps", type=int, help="default 120 to pretrain, 400 to finetune")
    parser.add_argument("--rows", type=int, default=4, help="sequences of a batch")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument(
        "--most-repeats",
        type=int,
        default=8192,
        help="times a filler segment may count as read: 8,192 segments are a million tokens",
    )
    args = parser.parse_args()
    {"pretrain": pretrain, "finetune": finetune}[args.command](args)


if __name__ == "__main__":
    sys.exit(main())
