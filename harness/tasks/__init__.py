"""Retrieval and tracking: tasks whose context lies in the cache, and whose question and answer come after it."""
