"""Make a session of a transcript, and ask it what was said.

    python examples/import_transcript.py [FILE.jsonl] [QUESTION]

Each line of FILE is an object with "role" and "content". Without arguments a short one is used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from longmem import Engine, LongMemError

SAMPLE = [
    {"role": "user", "content": "Merke's member number is 592690."},
    {"role": "assistant", "content": "Noted."},
    {"role": "user", "content": "My sister's dream city is Lisbon."},
    {"role": "assistant", "content": "I will keep that in mind."},
]


def transcript(path: Path) -> list[dict[str, str]]:
    """The turns of a file, one JSON object per line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def main() -> None:
    """Read the transcript, then ask."""
    turns = transcript(Path(sys.argv[1])) if len(sys.argv) > 1 else SAMPLE
    question = sys.argv[2] if len(sys.argv) > 2 else "What is Merke's member number?"
    with Engine.nano().session("imported") as session:  # give store= to keep it
        try:
            session.add(turns, progress=lambda done, of: print(f"{done} of {of} tokens read"))
        except LongMemError as error:
            sys.exit(f"refused: {error}")
        reply = session.ask(question)
        print(f"> {question}\n{reply.text}")
        for place in reply.recalled:
            print(f"looked up turn {place.turn.index}: {place.turn.text}")


if __name__ == "__main__":
    main()
