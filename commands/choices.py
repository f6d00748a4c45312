"""The closed sets that options take, each generated from the table of the engine or of the store that defines it.

In the grammar of the command line each is an enumeration: `--help` lists its values, shells complete them, and any other value
is refused. A command gets the plain name, because `CommandGroup` takes the value out of the member; a type checker therefore
sees `str`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, get_args

from actstore.engine.attribution.option_tokens import TooLong
from actstore.engine.building.names import FORMATS as IMPORT_FORMATS
from actstore.engine.capture.settings import Begin, Part, Summed
from actstore.engine.change.scorers import SCORERS
from actstore.engine.coactivation.settings import MEASURES
from actstore.engine.coverage.criteria import CRITERIA, METRICS
from actstore.engine.edit.baselines import BASELINES
from actstore.engine.edit.forms.table import FORMS as REWRITE_METHODS
from actstore.engine.explain.settings import OTHERS
from actstore.engine.graphs.methods import METHODS as GRAPH_METHODS
from actstore.engine.graphs.probes.plan import MASKS
from actstore.engine.graphs.token_sets import MATCHES
from actstore.engine.inputs.documents import DecodingErrors, StdinFormat
from actstore.engine.models.names import DTYPES, HEAD_SITES, SITES
from actstore.engine.multimodal.noun_maps import MAPS
from actstore.engine.multimodal.nouns import AUTO, NOUN_FINDERS
from actstore.engine.multimodal.rankings import REGIONS
from actstore.engine.multimodal.result import FORMS as ACTIVATIONS
from actstore.engine.naica.methods import METHODS as SELECTION_METHODS
from actstore.engine.naica.presets import PRESETS
from actstore.engine.naica.protocols import PROTOCOLS, REMOVALS
from actstore.engine.selectivity.firing import COUNTABLE, FIRING_SITES
from actstore.engine.selectivity.methods import METHODS as SELECTIVITY_METHODS
from actstore.explorer.site.parts import PARTS as SITE_PARTS
from actstore.store.capture.positions import POSITIONS
from actstore.store.capture.questions.attribution_kinds import KINDS as ATTRIBUTION_KINDS
from actstore.store.edits import KINDS as EDIT_KINDS
from actstore.store.exports.formats import FORMATS as EXPORT_FORMATS
from actstore.store.files.precision import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

NO_BASELINE = "none"
"""Of an edit's baselines: none at all."""
ALL_ACTIVATIONS = "both"
"""Of the activations that multi-modal neurons are ranked by: each of them."""


def closed_set(name: str, values: Iterable[str]) -> type[StrEnum]:
    """An enumeration of `values`, in their order."""
    return StrEnum(name, {value: value for value in values})  # type: ignore[return-value]  # mypy sees a look-up of a member


if TYPE_CHECKING:
    ActivationName = str
    AttributedScopeName = str
    AttributedSiteName = str
    AttributionKind = str
    BaselineName = str
    BeginName = str
    CoactivationMeasure = str
    CriterionName = str
    DecodingErrorsName = str
    DtypeName = str
    EditKind = str
    ExportFormat = str
    FiringSiteName = str
    GraphMethod = str
    ImportFormat = str
    MapName = str
    MaskName = str
    MatchName = str
    MetricName = str
    ModalityName = str
    NounFinderName = str
    OthersName = str
    PartName = str
    PositionSetName = str
    PrecisionName = str
    PresetName = str
    ProtocolName = str
    RegionsName = str
    RemovalName = str
    RewriteMethod = str
    ScorerName = str
    SelectionMethod = str
    SelectivityMethodName = str
    SiteName = str
    SitePart = str
    StdinFormatName = str
    SummedName = str
    TooLongName = str
else:
    ActivationName = closed_set("ActivationName", (*ACTIVATIONS, ALL_ACTIVATIONS))
    AttributedScopeName = closed_set("AttributedScopeName", ("position", "sequence"))
    AttributedSiteName = closed_set("AttributedSiteName", ("mlp.post", *HEAD_SITES))
    AttributionKind = closed_set("AttributionKind", ATTRIBUTION_KINDS)
    BaselineName = closed_set("BaselineName", (*BASELINES, NO_BASELINE))
    BeginName = closed_set("BeginName", get_args(Begin))
    CoactivationMeasure = closed_set("CoactivationMeasure", MEASURES)
    CriterionName = closed_set("CriterionName", CRITERIA)
    DecodingErrorsName = closed_set("DecodingErrorsName", get_args(DecodingErrors))
    DtypeName = closed_set("DtypeName", DTYPES)
    EditKind = closed_set("EditKind", EDIT_KINDS)
    ExportFormat = closed_set("ExportFormat", EXPORT_FORMATS)
    FiringSiteName = closed_set("FiringSiteName", FIRING_SITES)
    GraphMethod = closed_set("GraphMethod", GRAPH_METHODS)
    ImportFormat = closed_set("ImportFormat", IMPORT_FORMATS)
    MapName = closed_set("MapName", MAPS)
    MaskName = closed_set("MaskName", MASKS)
    MatchName = closed_set("MatchName", MATCHES)
    MetricName = closed_set("MetricName", METRICS)
    ModalityName = closed_set("ModalityName", COUNTABLE)
    NounFinderName = closed_set("NounFinderName", (AUTO, *NOUN_FINDERS))
    OthersName = closed_set("OthersName", OTHERS)
    PartName = closed_set("PartName", get_args(Part))
    PositionSetName = closed_set("PositionSetName", POSITIONS)
    PrecisionName = closed_set("PrecisionName", PRECISIONS)
    PresetName = closed_set("PresetName", PRESETS)
    ProtocolName = closed_set("ProtocolName", PROTOCOLS)
    RegionsName = closed_set("RegionsName", REGIONS)
    RemovalName = closed_set("RemovalName", REMOVALS)
    RewriteMethod = closed_set("RewriteMethod", REWRITE_METHODS)
    ScorerName = closed_set("ScorerName", SCORERS)
    SelectionMethod = closed_set("SelectionMethod", SELECTION_METHODS)
    SelectivityMethodName = closed_set("SelectivityMethodName", SELECTIVITY_METHODS)
    SiteName = closed_set("SiteName", SITES)
    SitePart = closed_set("SitePart", SITE_PARTS)
    StdinFormatName = closed_set("StdinFormatName", get_args(StdinFormat))
    SummedName = closed_set("SummedName", get_args(Summed))
    TooLongName = closed_set("TooLongName", get_args(TooLong))
