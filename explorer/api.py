"""`actstore.serve` and `actstore.site`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from actstore.store.calls import checked
from actstore.store.reader import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actstore.api.neurons import NeuronInput
    from actstore.explorer.server.run import Served
    from actstore.explorer.site.estimate import SiteEstimate
    from actstore.explorer.site.write import SiteReport


@checked
def serve(
    stores: Store | str | Path | Sequence[Store | str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    allow_host: Sequence[str] = (),
    model: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    browser: bool = True,
    on_start: Callable[[Served], None] = lambda served: None,
) -> None:
    """Serves the explorer of stores until it is interrupted; it only reads.

    - `stores`: one or several, open or where they are.
    - `host`: the interface to listen at; at any but this machine's own a token is asked for, which is in `served.url`.
    - `port`: the port; 0 takes one that is free.
    - `allow_host`: other names by which the server is called, as behind a proxy.
    - `model`: the first store's model, by name or path, to run on new texts.
    - `device`: where it runs: `auto`, `cpu`, `cuda` or `cuda:1`.
    - `browser`: open the explorer in the browser.
    - `on_start`: called with the address when the server answers.

    >>> actstore.serve("gpt2.actstore")
    """
    from actstore.explorer.server.run import run_server

    located = [stores] if isinstance(stores, Store | str | Path) else list(stores)
    run_server(
        located, host=host, port=port, allow_host=allow_host, model=model, device=device,
        trust_remote_code=trust_remote_code, browser=browser, on_start=on_start,
    )  # fmt: skip


@checked
def site(
    store: Store | str | Path,
    folder: str | Path,
    neurons: NeuronInput | Iterable[NeuronInput] | None = None,
    *,
    layers: Sequence[int] | None = None,
    capture: str | None = None,
    site: str = "mlp.post",
    k: int = 10,
    texts: int = 100,
    without: Sequence[str] = (),
    compare: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    on_estimate: Callable[[SiteEstimate], None] = lambda estimate: None,
    on_file: Callable[[int, int], None] = lambda done, n: None,
) -> SiteReport:
    """Writes the explorer of one capture into a folder of files, which any host can serve and any browser opens from a disk.

    - `neurons`, `layers`: whose pages are made; all neurons' unless given.
    - `k`: number of exemplars per neuron.
    - `texts`: number of documents whose whole text is there, those in which most neurons are highest; 0 for none.
    - `without`: what else is not there, of `others` (excerpts where neurons are lowest, and at random tokens), `similar`
      (neurons with similar graphs), `coactive` (neurons that fire together), `maps` (activations over images, and the images).
    - `compare`: another capture of the store, of the same neurons, whose statistics are there to compare with.
    - `resume`: continue a site that was interrupted.
    - `dry_run`: estimate size and time only.
    - `workers`: number of processes that files are divided among.
    - `on_estimate`: called with the estimate before anything is written; `on_file` with the number of files done and of all.

    >>> actstore.site("gpt2.actstore", "gpt2-site", layers=[3]).nbytes
    """
    from actstore.explorer.site.write import write_site

    return write_site(
        store, folder, neurons, layers=layers, capture=capture, site=site, k=k, texts=texts, without=without, compare=compare,
        resume=resume, dry_run=dry_run, workers=workers, on_estimate=on_estimate, on_file=on_file,
    )  # fmt: skip
