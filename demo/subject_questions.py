"""Some of the fact model's own questions in the layout of the QRNCA paper's authors, for `actstore questions` to read.

    python demo/subject_questions.py qrneuron

Writes FOLDER/data/subject_qa.json, as the authors' repository has it: query → prompts, letters, domain. Theirs are other
questions.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

QUESTIONS = Path(__file__).parent / "models" / "fact-llama" / "questions.json"
DOMAINS = ("biology", "chemistry", "geography", "mathematics")
"""Those of the model's domains that the authors' questions have, too."""
N_QUERIES = 20
"""Of each domain."""


def main() -> None:
    """Write the first questions of each domain."""
    seen: Counter[str] = Counter()
    chosen = {}
    for name, query in json.loads(QUESTIONS.read_text(encoding="utf-8")).items():
        domain = query["relation_name"]
        seen[domain] += 1
        if domain in DOMAINS and seen[domain] <= N_QUERIES:
            chosen[name] = query
    file = Path(sys.argv[1]) / "data" / "subject_qa.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(chosen, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
