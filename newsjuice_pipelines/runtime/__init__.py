"""Foundations shared by both domains: artefacts, provenance, progress, devices, seeds. Free of Dagster and of the domains."""
