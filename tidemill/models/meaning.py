"""What the features that a model reads mean, as digests: a model is refused where they mean something else than when it was made.

A digest is of everything that a value depends on: the source, its keys and filters, the aggregation and its window; of an on-demand
feature also the text of its function. It is not of names of services, of the order of windows, of `max_lag`, nor of other features: to
add a feature to a service leaves its models as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from tidemill.definitions import FeatureSet, OnDemand
from tidemill.definitions.source import str_of_type
from tidemill.definitions.view import FeatureRef
from tidemill.errors import DefinitionError, ModelError
from tidemill.models.manifest import ModelFeature
from tidemill.stable import digest

#: What a matrix of float64 can hold. An int beyond 2**53 is rounded to the nearest float.
NUMERIC = ("int", "float", "bool")


def features_of(wanted: FeatureSet) -> dict[str, ModelFeature]:
    """Every feature that a service has, by its column, in order."""
    return {o.column: ModelFeature(o.column, _type(o, wanted), _digest(o, wanted)) for o in wanted.outputs}


def definition_digest(features: Iterable[ModelFeature]) -> str:
    """One digest of what these features mean, in this order."""
    return digest([[f.name, f.type, f.digest] for f in features])


def check_numeric(features: Iterable[ModelFeature]) -> None:
    """Raise `ModelError` for a feature that no float64 can hold."""
    for feature in features:
        if feature.type not in NUMERIC:
            raise ModelError(
                f"feature {feature.name!r} is a {feature.type}, and a model is given float64 only: make an on-demand feature of it that "
                "returns a number (a hash, an age, a length), or leave it out of the service"
            )


def _type(output: FeatureRef | OnDemand, wanted: FeatureSet) -> str:
    if isinstance(output, OnDemand):
        return output.output.name
    view = wanted.views[output.view]
    feature = view.features[output.feature]
    if feature.aggregation.compile(view.source.schema, view.source.event_id).listed:
        return "list"
    return feature.type.name


def _digest(output: FeatureRef | OnDemand, wanted: FeatureSet) -> str:
    if isinstance(output, FeatureRef):
        if output.view not in wanted.views:
            raise DefinitionError(f"{output} is of no view that is read")
        view = wanted.views[output.view]
        feature = view.features[output.feature]
        return digest(["stored", view.aggregation_digest(feature.aggregation.with_windows([feature.window]))])
    inputs = [
        [parameter, _digest(source, wanted) if isinstance(source, FeatureRef) else [source.name, str_of_type(source.type)]]
        for parameter, source in output.parameters.items()
    ]
    return digest(["on demand", output.source_hash, str_of_type(output.output), inputs])
