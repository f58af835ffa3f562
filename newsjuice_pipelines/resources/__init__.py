"""Dagster resources: connections to what lies outside a step. They hold no secrets in their configuration, only in memory."""
