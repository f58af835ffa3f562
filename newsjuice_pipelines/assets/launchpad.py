"""Launchpad forms: a Dagster configuration class from a domain dataclass, so that each setting is described once."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import dagster as dg
from pydantic import Field, create_model


class LaunchpadConfig(dg.Config):
    """The common part of all forms."""

    force: bool = Field(False, description="Write the artefact again even when nothing that decides it changed.")

    def values(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON values."""
        return {name: value for name, value in self.model_dump().items() if name != "force"}


def launchpad_config(*domains: type, **described: tuple[Any, Any, str]) -> Any:
    """A form with the fields, defaults and attribute docstrings of dataclasses; its name and docstring are the first one's.

    Args:
        domains: dataclasses whose fields have defaults, each followed by a docstring.
        described: more fields, as (type, default, description).
    """
    fields: dict[str, Any] = {}
    for name, (kind, default, description) in described.items():
        fields[name] = (kind, Field(default, description=description))
    for domain in domains:
        descriptions = attribute_docstrings(domain)
        hints = get_type_hints(domain)
        for item in dataclasses.fields(domain):
            default = list(item.default) if isinstance(item.default, tuple) else item.default
            fields[item.name] = (_form_type(hints[item.name]), Field(default, description=descriptions.get(item.name)))
    return create_model(f"{domains[0].__name__}Form", __base__=LaunchpadConfig, __doc__=domains[0].__doc__, **fields)


def override_config(domain: type, **described: tuple[Any, Any, str]) -> Any:
    """A form in which every field of `domain` may stay empty: the value then comes from a preset.

    Args:
        domain: a dataclass, its fields followed by docstrings.
        described: more fields, as (type, default, description).
    """
    descriptions = attribute_docstrings(domain)
    hints = get_type_hints(domain)
    fields: dict[str, Any] = {}
    for name, (kind, default, description) in described.items():
        fields[name] = (kind, Field(default, description=description))
    for item in dataclasses.fields(domain):
        description = f"{descriptions[item.name]} Empty: the preset's."
        fields[item.name] = (_form_type(hints[item.name]) | None, Field(None, description=description))
    return create_model(f"{domain.__name__}Overrides", __base__=LaunchpadConfig, __doc__=domain.__doc__, **fields)


def chosen_preset(presets: Mapping[str, Any], name: str) -> Any:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in presets:
        raise ValueError(f"there is no preset {name!r}: use one of {', '.join(presets)}.")
    return presets[name]


def from_overrides(form: LaunchpadConfig, preset: Any) -> Any:
    """The dataclass instance `preset` with the fields replaced that were filled in."""
    names = {item.name for item in dataclasses.fields(preset)}
    filled = {name: value for name, value in form.model_dump().items() if name in names and value is not None}
    return dataclasses.replace(preset, **filled)


def from_form(form: LaunchpadConfig, domain: type) -> Any:
    """The domain dataclass that a filled-in form stands for; invalid values raise the dataclass's own errors."""
    names = {item.name: item for item in dataclasses.fields(domain)}
    values = {name: value for name, value in form.model_dump().items() if name in names}
    return domain(**{name: tuple(value) if isinstance(names[name].default, tuple) else value for name, value in values.items()})


def attribute_docstrings(domain: type) -> dict[str, str]:
    """The string literals that stand right behind the fields of a class, by field name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(domain))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(following, ast.Expr):
            text = following.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[statement.target.id] = " ".join(text.value.split())
    return found


def _form_type(hint: Any) -> Any:
    """Dagster forms know lists, not tuples, and plain values, not a choice of some."""
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]]  # type: ignore[misc]
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    return hint
