"""Writes the generated files of the Helm chart: python -m deploy.helm. Needs kustomize."""

from __future__ import annotations

from deploy.helm.chart import CHART, generated


def main() -> None:
    files = generated()
    for old in CHART.glob("templates/*/*"):
        if str(old.relative_to(CHART)) not in files:
            old.unlink()
    for name, text in files.items():
        (CHART / name).parent.mkdir(parents=True, exist_ok=True)
        (CHART / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
