"""`store.coverage`: how much of what neurons can do a corpus made them do, and linear probes between two labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from actstore.api.light import explains
from actstore.api.method import Method
from actstore.api.neurons import label_column
from actstore.api.results import Answer
from actstore.store.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from actstore.engine.coverage.coverage import Coverage
    from actstore.engine.coverage.probe import Probe


@explains
class CoverageMethod(Method):
    """Coverage criteria (Zhou et al., arXiv 2408.15207): `store.coverage(…)`, `store.coverage.probe(…)`."""

    _reached_as = "store.coverage"

    def __call__(
        self,
        *,
        criteria: Sequence[str] | None = None,
        reference: str | None = None,
        by: str | None = None,
        thresholds: Sequence[float] = (0.25, 0.5, 0.75),
        sections: int = 1000,
        top: int = 10,
        distance: float | None = None,
        metric: str = "euclidean",
        classes: str | None = None,
        lsc_width: float = 10.0,
        dsc_width: float = 0.1,
        mdsc_width: float = 10.0,
        bandwidth: float = 0.2,
        min_variance: float = 1e-5,
        site: str = "mlp.post",
        positions: str = "counted",
        output: str | Path | None = None,
        merge: Sequence[str | Path] = (),
        capture: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        on: str = "local",
    ) -> Answer[dict[str, Coverage]]:
        """Coverage criteria over the samples of a capture: NC, KMNC, NBC, SNAC, TKNC, TKNP, TFC, NLC, LSC, DSC, MDSC.

        - `criteria`: names of criteria; those of one pass that `reference` and `distance` allow unless given.
        - `reference`: name of the capture whose ranges kmnc, nbc and snac are held against, and the samples of lsc, dsc and
        mdsc.
        - `by`: a label; one population per value.
        - `thresholds`: the t of nc.
        - `sections`: the k of kmnc.
        - `top`: the k of tknc and tknp.
        - `distance`: how far a vector must lie from all kept ones, for tfc.
        - `metric`: whether `distance` is `euclidean`, or `squared` as in the authors' code.
        - `classes`: the label whose values are the classes that lsc, dsc and mdsc compare within; one class unless given.
        - `lsc_width`, `dsc_width`, `mdsc_width`: width of a bucket of each.
        - `bandwidth`: of the kernel of lsc.
        - `min_variance`: neurons that vary less over the reference are left out of lsc, dsc and mdsc.
        - `output`: a file for what was measured, to be merged.
        - `merge`: files of earlier measurements that are added.
        - `device`: what looks for the largest neurons of tknc and tknp: `auto`, `cpu`, `cuda` or `cuda:1`.
        - `workers`: number of processes that blocks are divided among; layers for tfc and nlc, which depend on their order.
        - `on`: where they run: `local`, `ray` or `ray://HOST:PORT`.

        Columns: population (the label's value, or `all`), criterion, parameter, covered, of, share, samples.
        """
        from actstore.engine.coverage.criteria import CoverageSettings, applicable_criteria
        from actstore.engine.coverage.files import merge_coverages, read_coverage, write_coverage
        from actstore.engine.coverage.measure import measure_coverage
        from actstore.engine.devices.device import find_device
        from actstore.engine.workers.scan import executor_of
        from actstore.store.capture.positions import warnings_of
        from actstore.store.exports.outputs import output_file

        names = applicable_criteria(has_reference=reference is not None, has_distance=distance is not None)
        if criteria is not None:
            names = tuple(criteria)
        settings = CoverageSettings(
            names, tuple(thresholds), sections, top, distance, site, positions, metric, classes,
            lsc_width, dsc_width, mdsc_width, bandwidth, min_variance,
        )  # fmt: skip
        if output is not None:
            output_file(output)
        executor, target = executor_of(workers, on), find_device(device, on)
        opened = self._store.capture(capture)
        against = self._store.capture(reference) if reference is not None else None
        others = [read_coverage(path) for path in merge]
        coverages = measure_coverage(opened, settings, reference=against, by=by, executor=executor, device=target)
        for other in others:
            merge_coverages(coverages, other)
        if output is not None:
            write_coverage(output, coverages)
        return Answer(_table(coverages, by), coverages, tuple(warnings_of(opened, site)))

    def probe(
        self,
        by: str,
        positive: str,
        negative: str | None = None,
        *,
        layers: Sequence[int] | None = None,
        ridge: float = 1.0,
        test_share: float = 0.3,
        seed: int = 0,
        site: str = "mlp.post",
        capture: str | None = None,
    ) -> Answer[Probe]:
        """How well a linear probe on the last token's activations tells one value of a label from another.

        - `by`: the label; `positive` the value to detect, `negative` the one to tell it from, every other unless given.
        - `layers`: layers that are probed; all unless given.
        - `ridge`: strength of the penalty on the weights.
        - `test_share`: share of the documents that the probe is tested on.
        - `seed`: random seed of the split.

        Columns: layer (null for all together), accuracy, auroc, train_accuracy.
        """
        from actstore.engine.coverage.probe import ProbeSettings, probe_capture

        settings = ProbeSettings(ridge, test_share, seed, site, tuple(layers) if layers is not None else None)
        probe = probe_capture(self._store.capture(capture), by, positive, negative, settings)
        names = ("layer", "accuracy", "auroc", "train_accuracy")
        rows = [{name: getattr(row, name) for name in names} for row in probe.results]
        schema = pa.schema([("layer", pa.int32()), *((name, pa.float64()) for name in names[1:])])
        return Answer(Table(pa.Table.from_pylist(rows, schema)), probe, tuple(probe.warnings))


def _table(coverages: Mapping[str, Coverage], by: str | None) -> Table:
    others = ("criterion", "parameter", "covered", "of", "share", "samples")
    population = label_column(by or "population", others)
    rows = [
        {
            population: name or "all",
            "criterion": row.criterion,
            "parameter": row.parameter,
            "covered": row.covered,
            "of": row.of,
            "share": row.share,
            "samples": coverage.n_samples,
        }
        for name, coverage in coverages.items()
        for row in coverage.results()
    ]
    return Table(pa.Table.from_pylist(rows))
