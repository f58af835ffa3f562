"""How old an asset may grow before the web UI calls it late. It only colours: nothing is materialised because of it."""

from collections.abc import Iterable, Sequence
from datetime import timedelta

import dagster as dg

# A day late is a warning, since a night can be missed; two are a failure.
NIGHTLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=74), warn_window=timedelta(hours=50))
# The weekly schedule skips while few new scripts come, so a student may be a month old.
MONTHLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=70), warn_window=timedelta(days=40))

# What people rely on, and what a schedule makes. An asset that was never materialised has no state.
POLICIES = {
    "article_chunks": NIGHTLY,
    "teacher_scripts": NIGHTLY,
    "podcast_decision": MONTHLY,
    "balanced_split": MONTHLY,
    "classifier_decision": MONTHLY,
}


def with_freshness(assets: Iterable[dg.AssetsDefinition]) -> Sequence[dg.AssetsDefinition]:
    """The assets with their freshness policies."""

    def late_after(spec: dg.AssetSpec) -> dg.AssetSpec:
        policy = POLICIES.get(spec.key.to_user_string())
        return spec if policy is None else spec.replace_attributes(freshness_policy=policy)

    return dg.map_asset_specs(late_after, assets)
