"""Lineage: what was made from what, what is out of date, and a drawing that can be read."""

from collections.abc import Callable
from itertools import combinations

import pytest

from newsjuice_pipelines.definitions import build_defs
from newsjuice_pipelines.runtime.artifacts import Artifact, ArtifactStore
from newsjuice_pipelines.site.catalogue import ASSETS, SECTION_ORDER, Group
from newsjuice_pipelines.site.lineage import GAP_X, NODE_HEIGHT, NODE_WIDTH, draw, histories
from newsjuice_pipelines.site.records import Records


def test_the_catalogue_is_the_graph_of_the_definitions() -> None:
    graph = build_defs().resolve_asset_graph()
    kinds = {"DailyPartitionsDefinition": "day", "StaticPartitionsDefinition": "model"}

    def defined(key: object) -> tuple[str | None, set[str], str | None]:
        node = graph.get(key)
        return (
            node.group_name,
            {parent.to_user_string() for parent in node.parent_keys},
            kinds[type(node.partitions_def).__name__] if node.partitions_def else None,
        )

    assert {asset.name: (asset.group, set(asset.parents), asset.partitioned_by) for asset in ASSETS} == {
        key.to_user_string(): defined(key) for key in graph.get_all_asset_keys()
    }


def test_an_artefact_names_its_inputs_its_configuration_and_its_code(
    store: ArtifactStore, publish: Callable[..., Artifact]
) -> None:
    day = publish("article_chunks/2026-09-16", facts={"rows": 2})
    publish("teacher_scripts/2026-09-16", facts={"rows": 2}, inputs=(day,), model="extractive")

    history = histories(Records(store))["teacher_scripts"]

    (made,) = history.made
    assert history.state == "current"
    assert made.inputs[0].words == f"article_chunks/2026-09-16 {day.version[:8]}"
    assert '"model": "extractive"' in made.configuration
    assert made.written_at


def test_an_artefact_is_out_of_date_when_an_input_was_replaced(store: ArtifactStore, publish: Callable[..., Artifact]) -> None:
    headlines = publish("huffpost_articles", {"a": "1"})
    publish("taxonomy", inputs=(headlines,))
    publish("huffpost_articles", {"a": "2"}, changed=True)

    found = histories(Records(store))

    assert found["huffpost_articles"].state == "current"
    assert found["taxonomy"].state == "outdated"
    assert found["balanced_split"].state == "missing"


def test_many_days_of_an_input_are_one_line(store: ArtifactStore, publish: Callable[..., Artifact]) -> None:
    days = tuple(publish(f"teacher_scripts/2026-09-{day}", {"a": str(day)}) for day in (16, 17, 18))
    publish("student_dataset", inputs=days)

    (made,) = histories(Records(store))["student_dataset"].made

    assert [found.words for found in made.inputs] == ["teacher_scripts, 3 partitions"]


def test_a_changed_manifest_is_a_problem_and_no_crash(store: ArtifactStore, publish: Callable[..., Artifact]) -> None:
    (publish("taxonomy").path / "manifest.json").write_text("{}", encoding="utf-8")

    history = histories(Records(store))["taxonomy"]

    assert history.state == "damaged"
    assert "was changed: materialise 'taxonomy' again" in history.problems[0]


@pytest.mark.parametrize("group", SECTION_ORDER)
def test_no_box_of_the_drawing_covers_another_and_inputs_stand_above(store: ArtifactStore, group: Group) -> None:
    drawing = draw(group, histories(Records(store)))

    assert {node.history.asset.name for node in drawing.nodes} == {asset.name for asset in ASSETS if asset.group == group}
    for one, other in combinations(drawing.nodes, 2):
        assert abs(one.x - other.x) >= NODE_WIDTH + GAP_X - 1 or abs(one.y - other.y) > NODE_HEIGHT
    places = {node.history.asset.name: node for node in drawing.nodes}
    for node in drawing.nodes:
        assert 0 <= node.x <= drawing.width - NODE_WIDTH
        assert all(places[parent].y < node.y for parent in node.history.asset.parents)
