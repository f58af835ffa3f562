"""What the tests of the deployment share: its files, read strictly, and the values that Compose would put into them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent.parent
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; plain YAML loaders keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"keys that stand twice: {sorted(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's folder."""
    return PROJECT


@pytest.fixture(scope="session")
def docker() -> Path:
    """The folder of the deployment's files."""
    return PROJECT / "docker"


@pytest.fixture(scope="session")
def read_yaml() -> Callable[[str], Any]:
    """Reads YAML text, and refuses a key that stands twice."""
    return lambda text: yaml.load(text, StrictLoader)


@pytest.fixture(scope="session")
def example_variables(docker: Path) -> dict[str, str]:
    """The variables of docker/.env.example."""
    lines = (docker / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    assert len({name for name, _ in pairs}) == len(pairs), "a variable stands twice"
    return dict(pairs)


@pytest.fixture(scope="session")
def composed(docker: Path, read_yaml: Callable[[str], Any]) -> Callable[..., dict[str, Any]]:
    """A Compose file with its variables filled in, as Compose does it: `${NAME:-default}`, `${NAME:?must be set}`."""

    def composed(name: str = "docker-compose.yaml", **values: str) -> dict[str, Any]:
        given = {"NEWSJUICE_SECRETS": "/etc/newsjuice/secrets", "DOCKER_GID": "999", **values}

        def value(found: re.Match[str]) -> str:
            variable, kind, rest = found.groups()
            if given.get(variable):
                return given[variable]
            assert kind != "?", f"{variable} has to be set"
            return rest or ""

        def fill(part: Any) -> Any:
            if isinstance(part, str):
                return VARIABLE.sub(value, part)
            if isinstance(part, list):
                return [fill(item) for item in part]
            return {key: fill(item) for key, item in part.items()} if isinstance(part, dict) else part

        content = fill(read_yaml((docker / name).read_text(encoding="utf-8")))
        assert isinstance(content, dict)
        return content

    return composed
