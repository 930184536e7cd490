"""What the Helm chart runs beside the operator: before a release goes, and for ``helm test``.

Their rights stand in the chart's templates: they are no part of the operator's own.
"""
