"""Build the link tree mypy reads: stores/ and adapters/ appear where they are installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    tree = ROOT / ".typecheck" / "longmem"
    tree.mkdir(parents=True, exist_ok=True)
    for link in tree.iterdir():
        link.unlink()
    parts = [p for p in (ROOT / "longmem").iterdir() if p.suffix in {".py", ".typed", ""}]
    for part in [*parts, ROOT / "stores", ROOT / "adapters"]:
        if part.name != "__pycache__":
            (tree / part.name).symlink_to(part)


if __name__ == "__main__":
    main()
