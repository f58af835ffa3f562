"""The runbook: its GraphQL fits Dagster's schema, its commands and the files that it names exist."""

import re
from pathlib import Path

import click
import pytest


@pytest.fixture(scope="module")
def runbook(project: Path) -> str:
    return (project / "docs" / "operations.md").read_text(encoding="utf-8") + (
        project / "docker" / "kubernetes" / "README.md"
    ).read_text(encoding="utf-8")


def test_the_graphql_of_the_runbook_fits_the_schema(runbook: str) -> None:
    from dagster_graphql.schema import create_schema
    from graphql import parse, validate

    schema = create_schema().graphql_schema
    questions = [text.replace('\\"', '"') for text in re.findall(r"^\$ ask '([^']+)'", runbook, re.MULTILINE)]

    assert len(questions) >= 3
    assert [error.message for question in questions for error in validate(schema, parse(question))] == []


def command_exists(root: click.Command, words: list[str]) -> bool:
    """Whether these words lead to a command, and its options are its own."""
    command = root
    while words and isinstance(command, click.Group) and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    return not isinstance(command, click.Group) and {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("program", ["dagster", "newsjuice"])
def test_the_commands_of_the_runbook_exist(program: str, runbook: str) -> None:
    from dagster._cli import create_dagster_cli

    from newsjuice_pipelines.cli import cli

    root = {"dagster": create_dagster_cli(), "newsjuice": cli}[program]
    pattern = rf"(?:in-code|--|`) {program} ([a-z][^\n`#]*)|`{program} ([a-z][^`\n]*)`"
    lines = [first or second for first, second in re.findall(pattern, runbook)]

    assert len(lines) >= 3
    assert [line for line in lines if not command_exists(root, line.split())] == []


def test_the_files_that_the_runbook_names_exist(project: Path, runbook: str) -> None:
    named = set(re.findall(r"\b(docker/[\w./-]+\w|newsjuice_pipelines/[\w./]+\.py)\b", runbook)) - {"docker/.env"}

    assert len(named) > 5
    assert [name for name in sorted(named) if not (project / name).exists()] == []
