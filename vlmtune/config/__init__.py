"""What the user wrote: schema, loading, presets. Imports pydantic and PyYAML only."""
