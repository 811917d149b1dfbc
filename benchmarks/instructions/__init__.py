"""Whether answers keep to what they are told, with logs present."""
