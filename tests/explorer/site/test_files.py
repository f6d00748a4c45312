"""Names and bytes of a site's files; the front end finds them by the same rule."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from actstore.explorer.site.files import MAX_NAME, SHARD, TOKENS, file_name, file_of, script, unpacked

FRONTEND = Path(__file__).parents[3] / "explorer" / "frontend"
NAMES = ["corpus", "mlp.post", "(max - mean) / std", "positive at language=ü/\u202e<b>", "", "..", "a" * 300, "ä" * 60]
ADDRESSES = [
    ["neuron", "corpus", "mlp.post", "L3.N17"], ["graph", "graphs", "L0.N0"], ["token", "corpus", "mlp.post", "129"],
    ["column", "corpus", "mlp.post", "(max - mean) / std"], ["questions", "facts", "by=relation name"],
    ["overview", "corpus", "L3.x"],
]  # fmt: skip


def test_names_are_plain_short_and_differ() -> None:
    names = [file_name(name) for name in [*NAMES, "a" * 299, "b" * 300]]
    assert len(set(names)) == len(names)
    assert all(len(name) <= MAX_NAME and "/" not in name for name in names)
    assert all(name.isascii() for name in names)


def test_neighbours_share_a_file() -> None:
    assert file_of(["neuron", "corpus", "mlp.post", f"L3.N{SHARD + 1}"]) == (
        "neuron/corpus/mlp.post/L3/1",
        f"L3.N{SHARD + 1}",
    )
    assert file_of(["token", "c", "s", str(2 * TOKENS)]) == ("token/c/s/2", str(2 * TOKENS))
    assert file_of(["overview", "corpus", "mlp.post"]) == ("overview/corpus/mlp.post", None)


def test_a_file_is_a_call_that_holds_its_document() -> None:
    document = {"a": ["</script><script>alert(1)</script>", "\u2028", float("nan")]}
    data = script('a"b', document)
    assert data.startswith(b'actstoreData("a\\"b","')
    assert b"<" not in data
    assert unpacked(data) == {"a": ["</script><script>alert(1)</script>", "\u2028", None]}


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_front_end_names_files_alike() -> None:
    program = (
        "globalThis.window = {};"
        "const text = await (await import('node:fs/promises')).readFile(process.argv[1], 'utf8');"
        "const part = text.slice(text.indexOf('/** The file that holds'), text.indexOf('function loadFile'));"
        "const { fileOf, fileName } = await import('data:text/javascript,' + encodeURIComponent(part));"
        f"const shards = {{ neuron: {SHARD}, token: {TOKENS} }};"
        "const [names, addresses] = JSON.parse(process.argv[2]);"
        "console.log(JSON.stringify([names.map(fileName), addresses.map((one) => Object.values(fileOf(one, shards)))]));"
    )
    command = [
        "node",
        "--input-type=module",
        "-e",
        program,
        str(FRONTEND / "source.js"),
        json.dumps([NAMES, ADDRESSES]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names, files = json.loads(done.stdout)
    assert names == [file_name(name) for name in NAMES]
    assert files == [list(file_of(address)) for address in ADDRESSES]
