"""Values in other libraries are those of the store: xarray, dask, polars, pandas, DuckDB, each where it is installed."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from actstore.api.store import Store
from actstore.store.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYER = 1


def store_of(planting: Callable[..., Any], **what: Any) -> tuple[Store, Any]:
    where = f"memory://{uuid.uuid4()}/store"
    planting(where, **what)
    store = Store(where)
    width = store.capture().record.layers("mlp.post")[LAYER]
    return store, np.stack([store.capture().activations(LAYER, n) for n in range(width)], axis=1)


@pytest.mark.parametrize("what", [{"precision": "int8"}, {"precision": "half"}, {"blocks": (0, 2), "finish": False}])
def test_xarray_decodes_what_it_reads(planting: Callable[..., Any], what: dict[str, Any]) -> None:
    pytest.importorskip("xarray", reason="xarray is not installed")
    store, expected = store_of(planting, **what)
    found = store.xarray(layers=[LAYER], chunked=False)
    np.testing.assert_array_equal(found.L1.values, expected)
    np.testing.assert_array_equal(found.L1[:, 17].values, expected[:, 17])
    np.testing.assert_array_equal(found.L1[5:90:3, [39, 2, 2]].values, expected[5:90:3][:, [39, 2, 2]])
    np.testing.assert_array_equal(found.L1.isel(token=-1).values, expected[-1])
    tokens = store.capture().tokens()
    assert found.token.values.tolist() == tokens["token"].to_pylist()
    assert found.text.values.tolist() == [store.token_text(one) for one in tokens["id"].to_pylist()]
    assert set(found.language.values) == {"en", "fr"}
    both = store.xarray(chunked=False)
    assert (both.L0.dims, both.L1.dims) == (("token", "neuron_0"), ("token", "neuron_1"))
    mean = found.L1.groupby("language").mean("token").sel(language="en").values
    np.testing.assert_allclose(mean, expected[found.language.values == "en"].mean(axis=0), atol=1e-6)
    with pytest.raises(NotFoundError, match="has no site 'resid"):
        store.xarray(site="resid.post")


def test_dask_reads_block_by_block(planting: Callable[..., Any]) -> None:
    for name in ("xarray", "dask"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    store, expected = store_of(planting, precision="int8")
    found = store.xarray(layers=[LAYER])
    assert found.L1.chunks[0] == tuple(store.capture().used_slots[list(store.capture().blocks)])
    np.testing.assert_allclose(found.L1.max("token").compute().values, expected.max(axis=0))
    mean = found.L1.groupby("language").mean("token").sel(language="en").values
    np.testing.assert_allclose(mean, expected[found.language.values == "en"].mean(axis=0), atol=1e-6)


def test_without_xarray_a_sentence_says_so(planting: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    store, _ = store_of(planting)
    with pytest.raises(InvalidInputError, match=r"xarray is not installed\. Install it: pip install xarray"):
        store.xarray()


@pytest.mark.parametrize("precision", ["int8", "exact"])
def test_zarr_alone_is_told_what_elements_are(planting: Callable[..., Any], tmp_path: Path, precision: str) -> None:
    planting(tmp_path / "store", precision=precision)
    group = zarr.open_group(tmp_path / "store" / "captures" / "corpus", mode="r")
    array = group[f"values/mlp.post/{LAYER}"]
    assert ("elements_are" in array.attrs) == (precision == "int8")
    if precision == "int8":
        scale = zarr.open_array(tmp_path / "store" / array.attrs["scale"], mode="r")[:]
        raw, slots = array[:], Store(tmp_path / "store").capture().slots()
        values = raw[:, slots] * scale[:, slots // 64]
        np.testing.assert_allclose(values[3], Store(tmp_path / "store").capture().activations(LAYER, 3))


def test_tables_in_other_libraries(planting: Callable[..., Any], tmp_path: Path) -> None:
    """Arrow tables and Parquet exports; the values are those of the store in each."""
    store, expected = store_of(planting, precision="int8")
    store.export(tmp_path / "a.parquet", ["L1.N3"])
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"""select "L1.N3" as v, language from '{tmp_path}/a.parquet'""").fetchnumpy()
    np.testing.assert_array_equal(found["v"], expected[:, 3])
    maxima = store.neurons().to_arrow()["max"].to_pylist()
    read = {"pandas": lambda m: m.read_parquet, "polars": lambda m: m.read_parquet}
    skipped = []
    for name, reader in read.items():
        try:
            module = __import__(name)
        except ImportError:
            skipped.append(name)
            continue
        np.testing.assert_array_equal(reader(module)(tmp_path / "a.parquet")["L1.N3"].to_numpy(), expected[:, 3])
        table = store.neurons().to_arrow()
        frame = table.to_pandas() if name == "pandas" else module.from_arrow(table)
        assert frame["max"].to_list() == maxima
    if skipped:
        pytest.skip(f"DuckDB agrees; not installed: {', '.join(skipped)}")
